import numpy as np
import pytest
from PIL import Image

from flambeau.data.images.image_list import image_list


def pictures(folder, count=4, size=(6, 5)):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full(size, 50 * number, np.uint8)).save(folder / f"{number}.png")


def test_labels_and_patients(tmp_path):
    pictures(tmp_path / "scans")
    rows = ["image,label,patient", "scans/0.png,COVID,p7", "scans/1.png,healthy,p2", "scans/2.png,COVID,p7"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = image_list(tmp_path / "list.csv", gray=True)
    assert found.images.shape == (3, 1, 6, 5) and found.images[2].max().item() == pytest.approx(100 / 255)
    assert found.labels.tolist() == [0, 1, 0] and found.classes == ["COVID", "healthy"]
    assert found.groups.tolist() == [0, 1, 0]


def test_numbers_are_in_their_order_and_the_folder_can_be_elsewhere(tmp_path):
    pictures(tmp_path / "scans")
    (tmp_path / "list.csv").write_text("label,image\n10,0.png\n2,1.png\n")
    found = image_list(tmp_path / "list.csv", root=tmp_path / "scans", size=4)
    assert found.classes == ["2", "10"] and found.labels.tolist() == [1, 0] and found.groups is None
    assert found.images.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("image,class\n0.png,1\n", ValueError, "has no column 'label'; it has image, class"),
        ("image,label\n0.png,\n", ValueError, "line 2: label is empty"),
        ("image,label,patient\n0.png,1,\n", ValueError, "line 2: patient is empty"),
        ("image,label\n0.png,1\n9.png,1\n", FileNotFoundError, "line 3: .*9.png does not exist"),
        ("image,label\n../list.csv,1\n", ValueError, "lies outside of"),
        ("image,label\n/etc/passwd,1\n", ValueError, "lies outside of"),
        ("image,label\n", ValueError, "names no pictures"),
        ("image,label\n0.png,1\nlarge.png,1\n", ValueError, "line 3: 9x9 pixels, the first has 5x6; pass size"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, error, message):
    pictures(tmp_path / "scans")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "scans" / "large.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(error, match=message):
        image_list(tmp_path / "list.csv", root=tmp_path / "scans")

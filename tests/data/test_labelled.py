import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from flambeau.data.images.image_set import ImageSet, digits
from flambeau.data.labelled import labelled_cases
from flambeau.data.tables import iris


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def test_an_image_set_is_split_by_class():
    cases = labelled_cases(digits(), test_share=0.25, seed=0)
    assert cases.are_images and len(cases.train_x) + len(cases.test_x) == 1797
    assert abs(len(cases.test_x) / 1797 - 0.25) < 0.01 and cases.classes == [str(k) for k in range(10)]
    assert set(cases.test_y.tolist()) == set(range(10))
    again = labelled_cases(digits(), test_share=0.25, seed=0)
    assert torch.equal(cases.train_x, again.train_x)


def test_a_folder_of_class_folders(tmp_path):
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(np.full((9 + i, 7), value, np.uint8)).save(tmp_path / name / f"{i}.png")
    cases = labelled_cases(str(tmp_path), size=16)
    assert cases.classes == ["cat", "dog"] and cases.train_x.shape[1:] == (3, 16, 16)
    assert torch.equal(cases.train_x.flatten(1).mean(1).round().long(), cases.train_y)


@pytest.mark.parametrize("named", ["folder", "file"])
@pytest.mark.parametrize("with_test", [True, False])
def test_mnist_files(tmp_path, named, with_test):
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 10))[: 1 + with_test]:
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 5, 5)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 2)
    path = tmp_path if named == "folder" else tmp_path / "train-images-idx3-ubyte.gz"
    cases = labelled_cases(path)
    assert (len(cases.train_x), len(cases.test_x)) == ((40, 10) if with_test else (30, 10))


def test_a_table_is_standardised_by_its_training_rows():
    cases = labelled_cases(iris(), seed=0)
    assert not cases.are_images and cases.columns == iris().names
    torch.testing.assert_close(cases.train_x.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(cases.train_x.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    original = cases.train_x * cases.scale + cases.mean
    assert (iris().features.unsqueeze(0) - original[:3].unsqueeze(1)).abs().sum(-1).min(1).values.max() < 1e-4


def test_csv_with_categories_and_gaps(tmp_path):
    rows = [f"{i},{'red' if i % 2 else 'blue'},{'' if i == 3 else i * i},{'yes' if i > 7 else 'no'}" for i in range(16)]
    (tmp_path / "t.csv").write_text("a,colour,b,label\n" + "\n".join(rows) + "\n")
    cases = labelled_cases(tmp_path / "t.csv", target="label")
    assert cases.columns == ["a", "colour=blue", "colour=red", "b"] and cases.classes == ["no", "yes"]
    assert torch.isfinite(cases.train_x).all() and torch.isfinite(cases.test_x).all()
    with pytest.raises(ValueError, match="target: expected the label's column"):
        labelled_cases(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="has no column 'x'"):
        labelled_cases(tmp_path / "t.csv", target="x")


def test_bad_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        labelled_cases(tmp_path / "nowhere")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a folder of class folders"):
        labelled_cases(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="without labels"):
        labelled_cases(ImageSet(torch.rand(8, 1, 4, 4)))
    with pytest.raises(ValueError, match="one class"):
        labelled_cases(ImageSet(torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64), ["a"]))
    lines = "".join(f"{i},{i / 7}\n" for i in range(40))
    (tmp_path / "number.csv").write_text("a,y\n" + lines)
    with pytest.raises(ValueError, match="expected at least two classes"):
        labelled_cases(tmp_path / "number.csv", target="y")

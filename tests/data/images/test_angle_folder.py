import numpy as np
import pytest
from PIL import Image

from flambeau.data.images.angle_folder import angle_folder


def write(root, angles, per=2, mode="L"):
    for angle in angles:
        (root / angle).mkdir(parents=True)
        for i in range(per):
            pixels = np.full((6, 8) if mode == "L" else (6, 8, 3), 10 * i, np.uint8)
            Image.fromarray(pixels).save(root / angle / f"{i}.png")


def test_eleven_angles_are_eleven_classes(tmp_path):
    angles = [str(angle) for angle in range(-75, 76, 15)]
    write(tmp_path, angles)
    cars = angle_folder(tmp_path, bins=11, size=4)
    assert cars.images.shape == (22, 1, 4, 4)
    assert cars.classes == [f"{angle}°" for angle in angles]
    assert sorted(cars.labels.tolist()) == sorted(list(range(11)) * 2)


def test_angles_go_to_the_nearest_bin_centre(tmp_path):
    write(tmp_path, ["0", "9.5", "44", "46", "90"], per=1, mode="RGB")
    loaded = angle_folder(tmp_path, bins=3, gray=False)
    assert loaded.images.shape == (5, 3, 32, 32) and loaded.classes == ["0°", "45°", "90°"]
    assert sorted(loaded.labels.tolist()) == [0, 0, 1, 1, 2]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        angle_folder(tmp_path / "nowhere")
    write(tmp_path / "one", ["15"])
    with pytest.raises(ValueError, match="1 angles"):
        angle_folder(tmp_path / "one")
    write(tmp_path / "named", ["15", "left"])
    with pytest.raises(ValueError, match="'left', expected an angle"):
        angle_folder(tmp_path / "named")
    write(tmp_path / "broken", ["0", "15"])
    (tmp_path / "broken" / "0" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        angle_folder(tmp_path / "broken")
    with pytest.raises(ValueError, match="bins"):
        angle_folder(tmp_path / "one", bins=1)

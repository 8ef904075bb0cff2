"""Pets, Flowers, CUB and folders of pictures: tiny sets in the published formats."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from flambeau.data import Batches, ImageSet, image_folder
from flambeau.data.images.public import Pictures, cub, flowers, in_memory, pets, pictures
from flambeau.data.subsets import per_class
from flambeau.symbolic import build, parse_value


def picture(path, value):
    """One grey JPEG of 20x12 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12), (value, value, value)).save(path)


def grey(items):
    return [round(float(image.mean() * 255)) for image, _ in items]


PETS = {"Abyssinian_1": 10, "american_bulldog_100": 50, "Abyssinian_2": 90, "beagle_7": 130}
PET_LINES = {"Abyssinian_1": "1 1 1", "american_bulldog_100": "2 2 1", "Abyssinian_2": "1 1 1", "beagle_7": "3 2 2"}


@pytest.fixture
def pet_folder(tmp_path):
    for name, value in PETS.items():
        picture(tmp_path / "images" / f"{name}.jpg", value)
    (tmp_path / "annotations").mkdir()
    lines = [f"{name} {rest}" for name, rest in PET_LINES.items()]
    header = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    (tmp_path / "annotations" / "list.txt").write_text(header + "\n".join(lines) + "\n")
    (tmp_path / "annotations" / "trainval.txt").write_text("\n".join(lines))
    (tmp_path / "annotations" / "test.txt").write_text(lines[0] + "\n")
    return tmp_path


def test_pets(pet_folder):
    for part, count in (("all", 4), ("trainval", 4), ("test", 1)):
        assert len(pets(pet_folder, part)) == count
    found = pets(pet_folder, size=(8, 10))
    assert found.classes == ["Abyssinian", "american_bulldog", "beagle"]
    assert found.labels.tolist() == [0, 1, 0, 2]
    assert found[3][0].shape == (3, 8, 10)
    assert grey(found[row] for row in range(4)) == list(PETS.values())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("Abyssinian_1 1 1", "trainval.txt, line 1: expected 4 words, got 3"),
        ("Abyssinian_1 x 1 1", "Abyssinian_1: expected a whole number from 1 to 1000, got 'x'"),
        ("Abyssinian_1 1 1 1\nbeagle_7 1 2 2", "class 1 is Abyssinian and, at beagle_7, beagle"),
        ("Abyssinian_1 1 1 1\nbeagle_7 3 2 2", "classes must be 1 to 2, got"),
        ("../../secret_1 1 1 1", "'../../secret_1.jpg' leads out of"),
        ("# nothing\n", "trainval.txt has no rows"),
    ],
)
def test_bad_lists_of_pets(pet_folder, lines, message):
    (pet_folder / "annotations" / "trainval.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        pets(pet_folder)


def test_pets_that_are_missing(pet_folder, monkeypatch):
    with pytest.raises(ValueError, match="part must be one of all, trainval, test, got 'train'"):
        pets(pet_folder, "train")
    (pet_folder / "images" / "beagle_7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="beagle_7.jpg is listed, but missing"):
        pets(pet_folder)
    (pet_folder / "annotations" / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match="test.txt is missing"):
        pets(pet_folder, "test")
    monkeypatch.setattr("flambeau.data.images.public.listing.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 are read"):
        pets(pet_folder)


@pytest.fixture
def flower_folder(tmp_path):
    for number in range(1, 7):
        picture(tmp_path / "jpg" / f"image_{number:05d}.jpg", 10 * number)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[3, 1, 2, 2, 1, 3]], np.uint8)})
    parts = {"trnid": [[5, 1]], "valid": [[2]], "tstid": [[3, 4, 6]]}
    savemat(tmp_path / "setid.mat", {name: np.array(rows, np.uint16) for name, rows in parts.items()})
    return tmp_path


def test_flowers(flower_folder):
    train, test = flowers(flower_folder, size=12), flowers(flower_folder, "test", size=12)
    assert train.labels.tolist() == [0, 2] and grey(train[row] for row in range(2)) == [50, 10]
    assert test.labels.tolist() == [1, 1, 2] and grey(test[row] for row in range(3)) == [30, 40, 60]
    assert len(flowers(flower_folder, "val")) == 1 and train.classes == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("imagelabels.mat", {"other": [1]}, "labels is nothing"),
        ("imagelabels.mat", {"labels": np.array(["a"], object)}, "labels is cell"),
        ("imagelabels.mat", {"labels": np.array([[1.5, 2.0]])}, "numbers that are not whole"),
        (
            "imagelabels.mat",
            {"labels": np.array([[0, 1, 2, 2, 1, 3]])},
            r"labels must lie in \[1, 1000\], got \[0, 3\]",
        ),
        ("setid.mat", {"trnid": np.array([[7]])}, r"trnid must lie in \[1, 6\], got \[7, 7\]"),
    ],
)
def test_bad_files_of_flowers(flower_folder, file, content, message):
    savemat(flower_folder / file, content)
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        flowers(flower_folder)


def test_flowers_that_are_missing_or_cut_off(flower_folder, monkeypatch):
    whole = (flower_folder / "setid.mat").read_bytes()
    for content in (whole[:200], whole[:20], b"", b"nothing of MATLAB" * 20):
        (flower_folder / "setid.mat").write_bytes(content)
        with pytest.raises(ValueError, match="setid.mat cannot be read"):
            flowers(flower_folder)
    (flower_folder / "setid.mat").unlink()
    with pytest.raises(FileNotFoundError, match="setid.mat is missing"):
        flowers(flower_folder)
    monkeypatch.setattr(sys.modules[flowers.__module__], "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="imagelabels.mat has .* at most 10 are read"):
        flowers(flower_folder)
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[flowers.__module__], "MAX_IMAGES", 5)
    with pytest.raises(ValueError, match="expected up to 5 numbers"):
        flowers(flower_folder)


BIRDS = ["001.Albatross/Albatross_1.jpg", "002.Auklet/Auklet_1.jpg", "001.Albatross/Albatross_2.jpg"]


@pytest.fixture
def bird_folder(tmp_path):
    for number, name in enumerate(BIRDS, start=1):
        picture(tmp_path / "images" / name, 60 * number)
    tables = {
        "images": BIRDS,
        "classes": ["001.Albatross", "002.Auklet"],
        "image_class_labels": [1, 2, 1],
        "train_test_split": [1, 1, 0],
    }
    for name, values in tables.items():
        lines = [f"{number} {value}" for number, value in enumerate(values, start=1)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_cub(bird_folder):
    train, test = cub(bird_folder, size=12), cub(bird_folder, train=False, size=12)
    assert train.labels.tolist() == [0, 1] and grey(train[row] for row in range(2)) == [60, 120]
    assert test.labels.tolist() == [0] and grey([test[0]]) == [180]
    assert train.classes == test.classes == ["001.Albatross", "002.Auklet"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_test_split", "1 1\n2 1\n", "train_test_split.txt and images.txt do not have the same images: 3"),
        (
            "train_test_split",
            "1 1\n2 1\n3 2\n",
            "train_test_split.txt: 3: expected a whole number from 0 to 1, got '2'",
        ),
        ("image_class_labels", "1 1\n2 3\n3 1\n", "2: expected a whole number from 1 to 2, got '3'"),
        ("image_class_labels", "1 1\n1 2\n3 1\n", "image_class_labels.txt: 1 is there twice"),
        ("images", "1 /etc/passwd\n2 a\n3 b\n", "'/etc/passwd' leads out of"),
        ("classes", "1 a\n3 b\n", "classes must be numbered from 1 to 2"),
        ("classes", "1 a b\n", "classes.txt, line 1: expected 2 words, got 3"),
    ],
)
def test_bad_lists_of_birds(bird_folder, file, content, message):
    (bird_folder / f"{file}.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        cub(bird_folder)


def test_a_folder_left_on_disk_is_the_folder_in_memory(bird_folder):
    lazy, loaded = pictures(bird_folder / "images", size=8), image_folder(bird_folder / "images", size=8)
    assert torch.equal(in_memory(lazy).images, loaded.images) and lazy.classes == loaded.classes
    assert torch.equal(lazy.labels, loaded.labels)
    images, labels = Batches(lazy, 3, shuffle=False).batch(0, torch.Generator().manual_seed(0))
    assert torch.equal(images, loaded.images) and torch.equal(labels, loaded.labels)
    chosen = per_class(lazy.labels, 1)
    assert torch.equal(in_memory(lazy[chosen]).images, loaded[chosen].images)
    assert torch.equal(in_memory(lazy[lazy.labels == 0]).images, loaded[lazy.labels == 0].images)
    assert len(lazy[1:]) == 2
    grey_ones = pictures(bird_folder / "images" / "001.Albatross", size=8, gray=True)
    assert grey_ones.labels is None and grey_ones[0].shape == (1, 8, 8)


def test_bad_pictures(bird_folder, monkeypatch):
    lazy = pictures(bird_folder / "images", size=8)
    (bird_folder / "images" / BIRDS[0]).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="Albatross_1.jpg cannot be read as a picture"):
        lazy[0]
    monkeypatch.setattr(sys.modules[pictures.__module__], "MAX_VALUES", 100)
    with pytest.raises(ValueError, match="3 pictures of 8x8 are 576 values, over 100"):
        in_memory(lazy)
    with pytest.raises(ValueError, match="at least one picture"):
        Pictures(())
    with pytest.raises(ValueError, match="size must be at least 1 pixel"):
        Pictures(lazy.files, size=0)
    with pytest.raises(ValueError, match=r"labels must have shape \[3\], got \[1\]"):
        Pictures(lazy.files, torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\), got \[0, 1\]"):
        Pictures(lazy.files, torch.tensor([0, 0, 1]), ["a"])


def test_a_set_is_named_on_the_command_line(pet_folder):
    found = build(parse_value(f"in_memory(pets({str(pet_folder)!r}, 'all', size=8))"))
    assert isinstance(found, ImageSet) and found.images.shape == (4, 3, 8, 8)
    assert found.classes == ["Abyssinian", "american_bulldog", "beagle"]

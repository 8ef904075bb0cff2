import numpy as np
import pytest
import torch

from flambeau.data import Batches
from flambeau.data.images.public import stl10, stl10_unlabeled

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96), np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "class_names.txt").write_text("airplane\nbird\ncar\n")
    for part in ("train", "test", "unlabeled"):
        # column by column, as MATLAB wrote them
        (tmp_path / f"{part}_X.bin").write_bytes(PIXELS.transpose(0, 1, 3, 2).tobytes())
    for part, labels in (("train", [1, 3, 2]), ("test", [2, 2, 1])):
        (tmp_path / f"{part}_y.bin").write_bytes(bytes(labels))
    return tmp_path


def test_labelled_parts(folder):
    train, test = stl10(folder), stl10(folder, train=False)
    assert torch.equal(train.images, torch.from_numpy(PIXELS).float() / 255)
    assert train.labels.tolist() == [0, 2, 1] and test.labels.tolist() == [1, 1, 0]
    assert train.classes == ["airplane", "bird", "car"]


def test_the_unlabelled_part_stays_on_disk_and_feeds_batches(folder):
    stored = stl10_unlabeled(folder)
    assert len(stored) == 3
    assert torch.equal(stored[1], torch.from_numpy(PIXELS[1]).float() / 255)
    batch = Batches(stored, 2, shuffle=False).batch(0, torch.Generator().manual_seed(0))
    assert torch.equal(batch, torch.from_numpy(PIXELS[:2]).float() / 255)
    with pytest.raises(IndexError):
        stored[3]


def test_files_that_are_missing_cut_off_or_wrong(folder):
    (folder / "train_y.bin").write_bytes(bytes([1, 2]))
    with pytest.raises(ValueError, match="train_y.bin has 2 labels, train_X.bin has 3 images"):
        stl10(folder)
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 0]))
    with pytest.raises(ValueError, match="expected labels from 1 to 3, got 0 to 2"):
        stl10(folder)
    (folder / "train_y.bin").unlink()
    with pytest.raises(FileNotFoundError, match="train_y.bin is missing"):
        stl10(folder)
    for name in ("test_X.bin", "unlabeled_X.bin"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(ValueError, match="test_X.bin has 82939 bytes, expected a multiple of 27648; it may be cut off"):
        stl10(folder, train=False)
    with pytest.raises(ValueError, match="unlabeled_X.bin has 82939 bytes"):
        stl10_unlabeled(folder)
    (folder / "unlabeled_X.bin").unlink()
    with pytest.raises(FileNotFoundError, match="unlabeled_X.bin is missing"):
        stl10_unlabeled(folder)

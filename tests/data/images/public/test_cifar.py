import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from pickled_by_python2 import pickled

from flambeau.data.images.public import cifar10, cifar100

NAMES = ["airplane", "automobile", "bird"]
RNG = np.random.default_rng(0)


def pixels(count):
    return RNG.integers(0, 256, (count, 3, 32, 32), np.uint8)


def binary10(folder, count=2):
    """The five training files and the test file; returns images and labels in the order of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    images, labels = [], []
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        images.append(pixels(count))
        labels.append(RNG.integers(0, 3, count).astype(np.uint8))
        records = [bytes([label]) + image.tobytes() for image, label in zip(images[-1], labels[-1])]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return np.concatenate(images), np.concatenate(labels)


def python10(folder, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batches.meta").write_bytes(pickled({"num_cases_per_batch": 2, "label_names": NAMES, "num_vis": 3072}))
    for number, name in enumerate([f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]):
        rows = slice(2 * number, 2 * number + 2)
        content = {"data": images[rows].reshape(2, 3072), "labels": labels[rows].tolist(), "filenames": ["a", "b"]}
        (folder / name).write_bytes(pickled(content))


def expected(images):
    return torch.from_numpy(images).float() / 255


@pytest.mark.parametrize("around", ["", "cifar-10-batches-bin"])
def test_binary_cifar10(tmp_path, around):
    images, labels = binary10(tmp_path / around)
    train, test = cifar10(tmp_path), cifar10(tmp_path, train=False)
    assert torch.equal(train.images, expected(images[:10])) and train.labels.tolist() == labels[:10].tolist()
    assert torch.equal(test.images, expected(images[10:])) and test.labels.tolist() == labels[10:].tolist()
    assert train.classes == NAMES


@pytest.mark.parametrize("around", ["", "cifar-10-batches-py"])
def test_the_python_version_gives_the_same(tmp_path, around):
    images, labels = binary10(tmp_path / "binary")
    python10(tmp_path / "python" / around, images, labels)
    for train in (True, False):
        one, other = cifar10(tmp_path / "binary", train), cifar10(tmp_path / "python", train)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.classes == other.classes


def test_cifar100_has_fine_and_coarse_labels_in_both_versions(tmp_path):
    images, fine, coarse = pixels(4), [3, 0, 2, 1], [1, 0, 1, 0]
    names = {"fine": ["apple", "bear", "cup", "dam"], "coarse": ["food", "rest"]}
    binary, python = tmp_path / "binary", tmp_path / "python"
    for folder in (binary, python):
        folder.mkdir()
    for kind, listed in names.items():
        (binary / f"{kind}_label_names.txt").write_text("\n".join(listed))
    records = [bytes([coarse[row], fine[row]]) + image.tobytes() for row, image in enumerate(images)]
    (binary / "train.bin").write_bytes(b"".join(records[:3]))
    (binary / "test.bin").write_bytes(records[3])
    (python / "meta").write_bytes(pickled({f"{kind}_label_names": listed for kind, listed in names.items()}))
    for name, rows in (("train", slice(0, 3)), ("test", slice(3, 4))):
        content = {"data": images[rows].reshape(-1, 3072), "fine_labels": fine[rows], "coarse_labels": coarse[rows]}
        (python / name).write_bytes(pickled(content))
    for folder in (binary, python):
        found = cifar100(folder)
        assert torch.equal(found.images, expected(images[:3]))
        assert found.labels.tolist() == fine[:3] and found.classes == names["fine"]
        found = cifar100(folder, train=False, coarse=True)
        assert found.labels.tolist() == coarse[3:] and found.classes == names["coarse"]


def test_files_that_are_missing_cut_off_or_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither batches.meta.txt"):
        cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither fine_label_names.txt"):
        cifar100(tmp_path)
    binary10(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="data_batch_3.bin has 6145 bytes, expected a multiple of 3073"):
        cifar10(tmp_path)
    file.write_bytes(b"\x09" + whole[1:])
    with pytest.raises(ValueError, match="data_batch_3.bin: expected labels of 3 classes"):
        cifar10(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3.bin is missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [0, 1]}, "test_batch has no data"),
        ({"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]}, r"data must be bytes \[N, 3072\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "labels must be 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}, "labels must be 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 7]}, "expected labels of 3 classes, got"),
    ],
)
def test_pickles_of_something_else(tmp_path, content, message):
    python10(tmp_path, pixels(12), np.zeros(12, np.uint8))
    (tmp_path / "test_batch").write_bytes(pickled(content))
    with pytest.raises(ValueError, match=message):
        cifar10(tmp_path, train=False)

import numpy as np
import pytest
import torch

from flambeau.data.medical.medmnist import medmnist, medmnist_volumes


def write(path, shape, labels=None, **other):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 3 if labels is None else labels(count)
    np.savez(path, **{**arrays, **other})
    return arrays


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_images_and_labels(tmp_path, shape):
    arrays = write(tmp_path / "organ.npz", shape)
    found = medmnist(tmp_path / "organ.npz", "val")
    expected = torch.from_numpy(arrays["val_images"]).float() / 255
    expected = expected.permute(0, 3, 1, 2) if len(shape) == 3 else expected.unsqueeze(1)
    assert torch.equal(found.images, expected) and found.images.shape[2:] == (7, 9)
    assert found.labels.tolist() == [0, 1, 2] and found.classes == ["0", "1", "2"]


def test_volumes(tmp_path):
    arrays = write(tmp_path / "organ3d.npz", (5, 6, 7))
    volumes, labels = medmnist_volumes(tmp_path / "organ3d.npz", "test")
    assert torch.equal(volumes, torch.from_numpy(arrays["test_images"]).float()[:, None] / 255)
    assert labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="are volumes; read them with medmnist_volumes"):
        medmnist(tmp_path / "organ3d.npz")
    write(tmp_path / "flat.npz", (5, 6))
    with pytest.raises(ValueError, match="must be volumes"):
        medmnist_volumes(tmp_path / "flat.npz")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npz does not exist"):
        medmnist(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match="text.npz is no npz file"):
        medmnist(tmp_path / "text.npz")
    np.savez(tmp_path / "less.npz", train_images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="no array 'train_labels'; it has train_images"):
        medmnist(tmp_path / "less.npz")
    write(tmp_path / "many.npz", (4, 4), labels=lambda count: np.zeros((count, 14), np.int64))
    with pytest.raises(ValueError, match="14 labels an image"):
        medmnist(tmp_path / "many.npz")
    write(tmp_path / "float.npz", (4, 4), train_images=np.zeros((6, 4, 4)))
    with pytest.raises(ValueError, match="must be uint8, got float64"):
        medmnist(tmp_path / "float.npz")
    with pytest.raises(ValueError, match="part must be one of train, val, test, got 'dev'"):
        medmnist(tmp_path / "float.npz", "dev")


def test_nothing_is_unpickled(tmp_path):
    write(tmp_path / "objects.npz", (4, 4), train_images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        medmnist(tmp_path / "objects.npz")

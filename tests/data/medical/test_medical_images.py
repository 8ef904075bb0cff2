"""What a user may give as images, and views that suit any channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from flambeau.data.medical.images import medical_images
from flambeau.data.medical.views import medical_views


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)


def test_folders_with_and_without_classes(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        save(tmp_path / "cases" / name)
    save(tmp_path / "flat" / "1.png")
    cases = medical_images(tmp_path / "cases", size=8)
    assert cases.images.shape == (3, 1, 8, 8) and cases.labels.tolist() == [0, 0, 1] and cases.classes == ["a", "b"]
    assert medical_images(tmp_path / "cases", size=8, labelled=False).labels is None
    assert medical_images(tmp_path / "flat", size=8, gray=False, labelled=False).images.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="flat has no labels"):
        medical_images(tmp_path / "flat", size=8)


def test_a_list_without_labels_keeps_its_patients(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    (tmp_path / "slices.csv").write_text("image,patient,source\n1.png,p1,x\n2.png,p1,y\n")
    found = medical_images(tmp_path / "slices.csv", size=8, labelled=False)
    assert found.labels is None and found.groups.tolist() == [0, 0]
    with pytest.raises(ValueError, match="no column 'label'"):
        medical_images(tmp_path / "slices.csv", size=8)


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 3)])
def test_medmnist_is_all_parts_in_the_channels_wanted(tmp_path, gray, shape):
    arrays = {}
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        arrays[f"{part}_images"] = np.full((count, *shape), 51, np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None]
    np.savez(tmp_path / "x.npz", **arrays)
    found = medical_images(tmp_path / "x.npz", size=6, gray=gray)
    assert found.images.shape == (6, 1 if gray else 3, 6, 6) and found.labels.tolist() == [0, 1, 2, 0, 1, 0]
    torch.testing.assert_close(found.images, torch.full_like(found.images, 0.2))


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        medical_images(tmp_path / "nothing", size=8)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match="must be a folder, a CSV list or a MedMNIST file"):
        medical_images(tmp_path / "x.txt", size=8)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_views_of_any_channels_and_two_sizes(channels):
    images = torch.rand(4, channels, 20, 24, generator=torch.Generator().manual_seed(0))
    views = medical_views((16, 18), local=2)(images, torch.Generator().manual_seed(1))
    assert [tuple(view.shape[1:]) for view in views] == [(channels, 16, 18)] * 2 + [(channels, 8, 9)] * 2
    again = medical_views((16, 18), local=2)(images, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(views, again)) and not torch.equal(views[0], views[1])
    assert min(view.min() for view in views) >= 0 and max(view.max() for view in views) <= 1
    with pytest.raises(ValueError, match="local must not be negative"):
        medical_views(8, local=-1)

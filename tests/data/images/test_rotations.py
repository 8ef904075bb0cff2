"""Four rotations of each image."""

import pytest
import torch

from flambeau.data.images.rotations import collate_rotations


def test_each_image_is_followed_by_its_rotations():
    images = torch.rand(3, 2, 5, 5)
    versions, labels = collate_rotations([(image, label) for label, image in enumerate(images)])
    assert versions.shape == (12, 2, 5, 5) and labels.tolist() == [0, 1, 2]
    assert torch.equal(versions[::4], images) and torch.equal(versions[6], images[1].flip(-1, -2))
    with pytest.raises(ValueError, match="must be square"):
        collate_rotations([(torch.rand(1, 4, 5), 0)])

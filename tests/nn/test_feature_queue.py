import pytest
import torch
import torch.nn.functional as F

from flambeau.nn.feature_queue import FeatureQueue


def test_first_in_first_out_whatever_the_batches():
    queue = FeatureQueue(7, 3)
    begun = queue.vectors.clone()
    pushed = F.normalize(torch.randn(23, 3), dim=1)
    taken = 0
    for size in (2, 3, 7, 1, 5, 5):
        queue.push(4 * pushed[taken : taken + size])  # lengths do not matter
        taken += size
        newest = torch.cat([begun, pushed[:taken]])[-7:]
        # From its position on, the queue is ordered from old to new.
        torch.testing.assert_close(queue.vectors.roll(-int(queue.position), 0), newest)


def test_it_begins_with_directions_and_is_part_of_a_checkpoint():
    queue, other = FeatureQueue(5, 4), FeatureQueue(5, 4)
    torch.testing.assert_close(queue.vectors.norm(dim=1), torch.ones(5))
    queue.push(torch.randn(3, 4, requires_grad=True))
    assert not queue.vectors.requires_grad
    other.load_state_dict(queue.state_dict())
    more = torch.randn(4, 4)
    queue.push(more)
    other.push(more)
    assert torch.equal(queue.vectors, other.vectors) and queue.position == other.position == 2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="size and dim must be at least 1"):
        FeatureQueue(0, 4)
    with pytest.raises(ValueError, match=r"must be \[batch, 4\], got \[2, 3\]"):
        FeatureQueue(8, 4).push(torch.randn(2, 3))
    with pytest.raises(ValueError, match="a queue of 8 cannot take 9 vectors"):
        FeatureQueue(8, 4).push(torch.randn(9, 4))

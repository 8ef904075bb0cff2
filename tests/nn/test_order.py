"""Orders are partitions, invert, and mask as defined."""

import pytest
import torch

from flambeau.nn.order import custom, diagonal, random_order, raster, snake


@pytest.mark.parametrize(
    "order, steps",
    [
        (raster((3, 4)), 12),
        (snake((3, 4)), 12),
        (diagonal((3, 4)), 6),
        (diagonal((2, 3, 4)), 7),
        (diagonal((5, 5), origin=(2, 2)), 5),
        (random_order((3, 4), seed=1), 12),
        (random_order((3, 4), seed=1, steps=5), 5),
        (custom([[3], [0, 2], [1]], (2, 2)), 3),
    ],
)
def test_partition_inverse_and_masks(order, steps):
    cells = len(order.sequence)
    assert order.steps == steps
    assert torch.equal(order.sequence[order.inverse], torch.arange(cells))
    step = {int(cell): number for number, group in enumerate(order.groups) for cell in group}
    content = [[step[q] >= step[k] for k in range(cells)] for q in range(cells)]
    query = [[step[q] > step[k] or q == k for k in range(cells)] for q in range(cells)]
    assert order.mask("content").tolist() == content
    assert order.mask("query").tolist() == query


def test_known_orders():
    assert snake((2, 3)).sequence.tolist() == [0, 1, 2, 5, 4, 3]
    assert [group.tolist() for group in diagonal((2, 3)).groups] == [[0], [1, 3], [2, 4], [5]]
    assert raster((2, 3)).is_raster and not snake((2, 3)).is_raster and snake((1, 3)).is_raster
    assert raster((2, 3)).coordinates.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert torch.equal(random_order((4, 4), 3).sequence, random_order((4, 4), 3).sequence)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: custom([[0, 1]], (2, 2)), r"missing: \[2, 3\]"),
        (lambda: custom([[0, 1], [1, 2, 3]], (2, 2)), r"repeated: \[1\]"),
        (lambda: custom([[0, 1, 2, 7]], (2, 2)), r"outside: \[7\]"),
        (lambda: custom([[0, 1, 2, 3], []], (2, 2)), "must not be empty"),
        (lambda: custom([], ()), "grid needs axes"),
        (lambda: diagonal((2, 2), origin=(2, 0)), "origin must be a cell"),
        (lambda: random_order((2, 2), 0, steps=5), "steps must lie in 1..4"),
        (lambda: raster((2, 2)).mask("value"), "stream must be"),
    ],
)
def test_bad_orders(build, message):
    with pytest.raises(ValueError, match=message):
        build()

"""Rotary angles depend on relative coordinates only."""

import pytest
import torch

from flambeau.nn.rotary import Rotary, grid_coordinates, line_coordinates, rotate


@pytest.mark.parametrize("coordinates", [line_coordinates(30), grid_coordinates((5, 6)), grid_coordinates((2, 3, 5))])
def test_scores_depend_on_coordinate_differences(coordinates):
    head_dim = 12
    rotary = Rotary(head_dim, coordinates).double()
    query, key = torch.randn(2, 1, 1, 1, head_dim, dtype=torch.float64)
    every = torch.arange(30)[None]
    queries, keys = (rotate(x.expand(1, 1, 30, -1), rotary(every)) for x in (query, key))
    scores = (queries @ keys.transpose(-1, -2))[0, 0]
    seen = {}
    for i, a in enumerate(coordinates.tolist()):
        for j, b in enumerate(coordinates.tolist()):
            difference = tuple(x - y for x, y in zip(a, b))
            assert scores[i, j] == pytest.approx(seen.setdefault(difference, float(scores[i, j])), abs=1e-5)
    assert torch.allclose(queries.norm(dim=-1), query.norm(dim=-1).expand(1, 1, 30), atol=1e-5)


def test_origin_is_the_identity_and_prefix_sits_there():
    rotary = Rotary(8, grid_coordinates((2, 3), prefix=2))
    x = torch.randn(1, 2, 3, 8)
    assert torch.equal(rotate(x, rotary(torch.tensor([[0, 1, 2]]))), x)
    assert grid_coordinates((2, 3), prefix=2)[2:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_axes_must_divide_the_head():
    with pytest.raises(ValueError, match="head_dim must be divisible by 4 for 2 axes, got 6"):
        Rotary(6, grid_coordinates((2, 2)))

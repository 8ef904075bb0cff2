"""Positions of a grid as sines and cosines."""

import math

import pytest
import torch

from flambeau.nn.sin_cos import sin_cos_positions


def test_definition():
    found = sin_cos_positions((3, 5), 8, base=10.0)
    assert found.shape == (15, 8)
    for row in range(3):
        for column in range(5):
            rates = (1.0, 10**-0.5)
            expected = [f(number * rate) for number in (row, column) for f in (math.sin, math.cos) for rate in rates]
            torch.testing.assert_close(found[5 * row + column], torch.tensor(expected))


def test_bad_sizes():
    for grid, width in (((3, 5), 6), ((0, 5), 8)):
        with pytest.raises(ValueError, match="multiple of 4"):
            sin_cos_positions(grid, width)

"""First tokens come from the neighbour their kind names."""

import torch

from flambeau.generation import SpatialInit


def filled(init, source, start, stop):
    source = torch.tensor([[*source, -1]])
    init.fill(source, torch.tensor([start]), torch.tensor([stop]), 4, lambda p: torch.full(p.shape, 0.999), 50)
    return source[0, :-1].tolist()


def test_left_and_upper_neighbours_in_a_grid():
    row = [10, 11, 12, 20, 21, 0, 0, 0, 0]
    assert filled(SpatialInit("repeat_h", (3, 3)), row, 5, 9)[5:] == [21, 49, 49, 49]
    assert filled(SpatialInit("repeat_v", (3, 3)), row, 5, 9)[5:] == [12, 20, 21, 12]
    assert filled(SpatialInit("random", (3, 3)), row, 5, 8)[5:] == [49, 49, 49, 0]
    assert filled(SpatialInit("sample_h", (3, 3)), row, 3, 4)[3] == 49


def test_lines_end_and_prefixes_are_skipped():
    # prefix of 2, rows of 2 image tokens and an end of line (token 9)
    row = [1, 2, 10, 11, 9, 20, 0, 0]
    assert filled(SpatialInit("repeat_v", (2, 2), 9, prefix=2), row, 6, 8)[6:] == [11, 9]
    assert filled(SpatialInit("repeat_h", (2, 2), 9, prefix=2), row, 6, 8)[6:] == [20, 9]
    assert filled(SpatialInit("repeat_h", (2, 2), 9, prefix=2, vocabulary=(3, 6)), row, 1, 4)[1:4] == [5, 5, 5]


def test_rows_fill_different_stretches():
    source = torch.tensor([[1, 2, 0, 0, -1], [3, 0, 0, 0, -1]])
    init = SpatialInit("repeat_v", (2, 2))
    init.fill(source, torch.tensor([2, 1]), torch.tensor([4, 3]), 2, lambda p: torch.zeros(p.shape), 5)
    assert source[:, :4].tolist() == [[1, 2, 1, 2], [3, 0, 3, 0]]

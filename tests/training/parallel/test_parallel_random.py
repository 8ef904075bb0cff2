"""Random numbers that differ where ranks hold different things and agree elsewhere."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import parallel_workers as workers

from flambeau.training.parallel.random import draw_by_rank, rank_stream


@pytest.fixture(scope="module")
def ranks():
    return workers.two()


def test_masks_differ_in_parallel_regions_as_much_as_chance_has_it(ranks):
    found = ranks[0]["dropout"]
    p = 0.5
    expected = p**2 + (1 - p) ** 2
    deviation = math.sqrt(expected * (1 - expected) / found["draws"])
    assert abs(found["parallel_agreement"] - expected) <= 3 * deviation
    assert abs(found["kept"] - 0.5) <= 3 * 0.5 / math.sqrt(found["draws"])


def test_masks_agree_on_what_all_ranks_hold(ranks):
    assert ranks[0]["dropout"]["replicated_equal"] is True


def test_recomputation_draws_both_kinds_of_masks_again(ranks):
    assert all(rank["dropout"]["recomputed_equal"] for rank in ranks)


def test_dropout_of_a_split_model_has_the_same_mean_loss(ranks):
    found = ranks[0]["dropout"]
    split, alone = found["means"]
    assert abs(split - alone) <= 2 * found["standard_error"]


def test_streams_differ_inside_and_agree_behind(ranks):
    first, second = (rank["dropout"] for rank in ranks)
    assert not torch.equal(first["inside"], second["inside"])
    assert torch.equal(first["behind"], second["behind"])


def test_restoring_pytorchs_generator_restores_both_streams():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        torch.set_rng_state(state)
        with rank_stream(3):
            inside = torch.rand(5)
        with rank_stream(3):
            again = torch.rand(5)
        drawn.append(torch.stack([inside, again, torch.rand(5)]))
    assert torch.equal(*drawn)
    assert len({tuple(row.tolist()) for row in drawn[0]}) == 3


def test_a_region_ends_when_its_module_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    module = Fails()
    draw_by_rank(module, 1)
    torch.manual_seed(0)
    torch.randint(2**62, (), dtype=torch.int64)  # the region's key
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="no"):
        module(torch.ones(1))
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_draws_nothing():
    module = nn.Dropout(0.5).eval()
    draw_by_rank(module, 1)
    torch.manual_seed(0)
    module(torch.ones(4))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)

import pytest
import torch

from flambeau.models.vision import ConvStages


def test_each_stage_halves_the_resolution():
    network = ConvStages((4, 6, 8), in_channels=2).eval()
    maps = network.stages(torch.rand(3, 2, 16, 24))
    assert [tuple(y.shape[1:]) for y in maps.values()] == [(4, 8, 12), (6, 4, 6), (8, 2, 3)]
    assert list(maps) == network.stage_names and network.features == 8
    x = torch.rand(3, 2, 16, 24)
    assert torch.equal(network(x), network.stages(x)["stage3"])


def test_bad_widths_are_named():
    with pytest.raises(ValueError, match=r"widths must be positive numbers, got \(\)"):
        ConvStages(())

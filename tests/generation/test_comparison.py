"""The resampling tests pass equal samples and catch different ones."""

import pytest
import torch

from flambeau.generation.comparison import mean_gap, sequence_nll, usage_gap
from flambeau.generation.step_cost import in_turns, step_seconds
from flambeau.models.language import Decoder


def test_gaps_tell_equal_from_different():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, generator=generator).unbind()
    gap, half = mean_gap(a, b, generator)
    assert abs(gap) < half and half == pytest.approx(2.576 * (2 / 200) ** 0.5, rel=0.15)
    gap, half = mean_gap(a, b + 1, generator)
    assert abs(gap) > half
    x, y = torch.randint(0, 8, (2, 100, 16), generator=generator).unbind()
    gap, chance = usage_gap(x, y, 8, generator)
    assert gap < chance
    gap, chance = usage_gap(x, y.clamp(max=5), 8, generator)
    assert gap > chance


def test_sequence_nll_is_the_models_own_and_knows_padding():
    torch.manual_seed(0)
    model = Decoder(7, 12, 16, 1, 2).eval()
    tokens = torch.randint(0, 7, (5, 9))
    expected = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:], reduction="none")[
        :, -4:
    ].mean(1)
    assert torch.allclose(sequence_nll(model, tokens, 4, batch=2), expected, atol=1e-5)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2, :3] = False
    got = sequence_nll(model, tokens, 4, mask=mask)
    assert torch.allclose(got[2], sequence_nll(model, tokens[2:3, 3:], 4)[0]) and torch.allclose(
        got[0], expected[0], atol=1e-5
    )


def test_timings_cover_what_was_asked():
    calls = []
    assert set(in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)) == {"a", "b"}
    assert calls == ["a", "b", "a", "b"]
    cost = step_seconds(Decoder(7, 40, 16, 1, 2).eval(), (1, 4), context=8, repeats=3)
    assert set(cost) == {1, 4} and min(cost.values()) > 0

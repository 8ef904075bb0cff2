"""Warping equals its definition, a window equals its slots one by one, and draws are keyed."""

import pytest
import torch

from flambeau.generation.noise import DRAW, PREVIEW, Noise
from flambeau.generation.processors import AllowedTokens, EndOfLine, PerSlot, RepetitionPenalty, Slots
from flambeau.generation.sampler import Sampler, check, draw, guide


def brute(logits, temperature, top_k, top_p):
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[:top_k] if top_k else order
    weights = (logits / temperature - (logits / temperature).max()).exp()
    if top_p:
        total, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
        for token in kept:
            nucleus.append(token)
            mass += weights[token] / total
            if mass >= top_p:
                break
        kept = nucleus
    out = torch.zeros_like(logits)
    out[kept] = weights[kept]
    return out / out.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 4, 50])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.8, 1.0])
def test_warping_is_the_definition(temperature, top_k, top_p):
    logits = torch.randn(3, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = Sampler(temperature, top_k, top_p).probabilities(logits)
    for row in range(3):
        for slot in range(4):
            assert torch.allclose(got[row, slot], brute(logits[row, slot], temperature, top_k, top_p))
            alone = Sampler(temperature, top_k, top_p).probabilities(logits[row : row + 1, slot : slot + 1])
            assert torch.equal(alone[0, 0], got[row, slot])


def test_zero_temperature_is_argmax_and_guidance_interpolates():
    logits, other = torch.randn(2, 2, 3, 7).unbind()
    assert torch.equal(Sampler(0.0).probabilities(logits).argmax(-1), logits.argmax(-1))
    assert Sampler(0.0).probabilities(logits).sum() == 6
    assert guide(logits, other, 1.0) is logits
    assert torch.allclose(guide(logits, other, 3.0), other + 3 * (logits - other), atol=1e-5)
    assert torch.equal(guide(logits, other, 0.0), other)


def test_half_precision_logits_are_warped_in_single():
    assert Sampler().probabilities(torch.randn(1, 1, 5, dtype=torch.bfloat16)).dtype == torch.float32


def test_draw_inverts_the_cumulative_sum_and_never_takes_the_impossible():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 1 - 2.0**-52], dtype=torch.float64)
    assert draw(weights.expand(4, 5), uniform).tolist() == [1, 1, 3, 3]
    assert draw(7 * weights.expand(4, 5), uniform).tolist() == [1, 1, 3, 3]


def test_noise_depends_on_its_key_only_and_is_uniform():
    noise = Noise(torch.Generator().manual_seed(3))
    rows, positions = torch.arange(50), torch.arange(40).expand(50, 40)
    whole = noise.uniform(rows, 5, positions)
    assert torch.equal(noise.uniform(rows[[7, 3]], 5, positions[[7, 3], 10:12]), whole[[7, 3], 10:12])
    assert torch.equal(noise.uniform(rows, torch.full((50, 40), 5), positions), whole)
    assert torch.equal(Noise(torch.Generator().manual_seed(3)).uniform(rows, 5, positions), whole)
    samples = [whole, noise.uniform(rows, 6, positions), noise.uniform(rows, 5, positions, PREVIEW)]
    samples.append(Noise(torch.Generator().manual_seed(4)).uniform(rows, 5, positions, DRAW))
    for sample in samples:
        assert 0 <= sample.min() and sample.max() < 1
        assert abs(sample.mean() - 0.5) < 0.02 and abs(sample.var() - 1 / 12) < 0.005
    for a in range(4):
        for b in range(a):
            assert abs(torch.corrcoef(torch.stack([samples[a].flatten(), samples[b].flatten()]))[0, 1]) < 0.07
    assert torch.cat(samples).unique().numel() == 8000


def test_missing_mass_is_reported_with_row_and_position():
    logits, everything = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    logits[1, 2] = -torch.inf
    with pytest.raises(ValueError, match="row 1 at generated position 12"):
        check(Sampler().probabilities(logits), torch.tensor([[0, 1, 2], [10, 11, 12]]), everything, torch.arange(2))
    padding = everything.clone()
    padding[1, 2] = False
    check(Sampler().probabilities(logits), torch.tensor([[0, 1, 2], [10, 11, 12]]), padding, torch.arange(2))
    logits[1, 2] = 0.0
    logits[0, 1, 3] = torch.nan
    for sampler in (Sampler(), Sampler(0.0), Sampler(top_k=2), Sampler(top_p=0.5)):
        with pytest.raises(ValueError, match="row 0 at generated position 1 "):
            check(sampler.probabilities(logits), torch.tensor([[0, 1, 2], [10, 11, 12]]), everything, torch.arange(2))


def slots(tokens, positions, prompt=2, starts=None):
    tokens = torch.tensor(tokens)
    starts = torch.zeros(len(tokens), dtype=torch.long) if starts is None else torch.tensor(starts)
    return Slots(tokens, prompt, starts, torch.tensor(positions), torch.arange(len(tokens)), len(tokens))


def test_repetition_penalty_sees_only_the_history_of_each_slot():
    logits = torch.ones(1, 3, 6)
    logits[0, :, 4] = -1.0
    got = RepetitionPenalty(2.0)(logits, slots([[5, 1, 4, 2, 0]], [[2, 3, 4]], starts=[1]))
    assert got[0, 0].tolist() == [1, 0.5, 1, 1, -1, 1]
    assert got[0, 1].tolist() == [1, 0.5, 1, 1, -2, 1]
    assert got[0, 2].tolist() == [1, 0.5, 0.5, 1, -2, 1]


def test_per_slot_calls_a_flat_processor_with_the_same_histories():
    def penalise(tokens, scores):
        seen = torch.gather(scores, 1, tokens)
        return scores.scatter(1, tokens, torch.where(seen < 0, seen * 2, seen / 2))

    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    where = slots([[5, 1, 4, 2, 0], [0, 0, 3, 1, 1]], [[2, 3, 4], [1, 2, 3]])
    assert torch.equal(PerSlot(penalise)(logits, where), RepetitionPenalty(2.0)(logits, where))


def test_structural_processors():
    logits = torch.zeros(1, 4, 5)
    got = EndOfLine(width=2, eol_id=4, prefix=1)(logits, slots([[0] * 8], [[3, 4, 5, 6]]))
    allowed = [[token for token in range(5) if got[0, slot, token] == 0] for slot in range(4)]
    assert allowed == [[0, 1, 2, 3], [0, 1, 2, 3], [4], [0, 1, 2, 3]]
    got = AllowedTokens(1, 3)(logits, slots([[0] * 8], [[3, 4, 5, 6]]))
    assert (got[0, 0] == 0).tolist() == [False, True, True, False, False]


def test_bad_processors():
    with pytest.raises(ValueError, match="penalty must be positive"):
        RepetitionPenalty(0.0)
    with pytest.raises(ValueError, match="processors need slots"):
        Sampler(processors=(AllowedTokens(0, 1),)).probabilities(torch.zeros(1, 1, 2))

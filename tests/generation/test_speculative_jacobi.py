"""Exactness of speculative Jacobi decoding, by enumeration; its special cases, bounds and errors."""

import math

import pytest
import torch

from flambeau.generation import (
    AllowedTokens,
    EndOfLine,
    RepetitionPenalty,
    Sampler,
    SpatialInit,
    SpeculativeJacobi,
    calibrate,
    generate,
    snake,
)
from flambeau.generation.enumeration import TableModel, chi_square, exact_joint, sequence_index
from flambeau.generation.noise import ACCEPT, DRAW, Noise
from flambeau.generation.state import DecodingState
from flambeau.generation.verification import verify_chain
from flambeau.models.language import Decoder

ROWS = 40_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def p_value(tokens, vocab, joint):
    counts = torch.bincount(sequence_index(tokens, vocab), minlength=len(joint)).double()
    return chi_square(counts, joint)


@pytest.mark.parametrize("redraw", ["independent", "maximal_coupling"])
@pytest.mark.parametrize("kind", ["random", "repeat_h", "repeat_v", "sample_h", "sample_v"])
@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_samples_follow_the_exact_joint(window, kind, redraw):
    model = TableModel(4, 4, seed=window)
    prompt = torch.full((ROWS, 1), 4)
    for temperature in (0.7, 1.3):
        joint = exact_joint(model, prompt[:1], 4, Sampler(temperature))
        decoder = SpeculativeJacobi(window, SpatialInit(kind, (2, 2)), redraw=redraw)
        out = decoder.generate(model, prompt, 4, temperature=temperature, generator=seeded(7))
        assert p_value(out.tokens[:, 1:], 4, joint) > 1e-3


@pytest.mark.parametrize("vocab, length, options", [(5, 3, {"top_k": 2}), (3, 4, {"top_p": 0.7}), (5, 4, {"top_k": 3})])
def test_truncated_distributions_are_exact(vocab, length, options):
    model = TableModel(vocab, length, seed=3)
    prompt = torch.full((ROWS, 1), vocab)
    joint = exact_joint(model, prompt[:1], length, Sampler(**options))
    out = SpeculativeJacobi(4).generate(model, prompt, length, generator=seeded(0), **options)
    assert p_value(out.tokens[:, 1:], vocab, joint) > 1e-3


def test_processors_see_every_slot():
    model = TableModel(4, 6, seed=5)
    prompt = torch.full((ROWS, 1), 4)
    processors = (EndOfLine(width=2, eol_id=3), RepetitionPenalty(1.6))
    joint = exact_joint(model, prompt[:1], 6, Sampler(processors=processors))
    init = SpatialInit("sample_v", (2, 2), eol_id=3)
    out = SpeculativeJacobi(4, init).generate(model, prompt, 6, processors=processors, generator=seeded(2))
    tokens = out.tokens[:, 1:]
    assert (tokens[:, [2, 5]] == 3).all() and (tokens[:, [0, 1, 3, 4]] != 3).all()
    assert p_value(tokens, 4, joint) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guidance_is_exact(scale):
    model = TableModel(3, 4, seed=6, starts=2)
    prompt, uncond = torch.full((ROWS, 1), 3), torch.full((ROWS, 1), 4)
    joint = exact_joint(model, prompt[:1], 4, Sampler(), cfg_scale=scale, uncond=uncond[:1])
    conditional = exact_joint(model, prompt[:1], 4, Sampler())
    assert torch.allclose(joint, conditional) == (scale == 1.0)
    out = SpeculativeJacobi(4).generate(model, prompt, 4, cfg_scale=scale, uncond_ids=uncond, generator=seeded(1))
    assert p_value(out.tokens[:, 1:], 3, joint) > 1e-3


def lock_step(model, length, window, groups, old_distribution):
    """Groups of three rows advance together by their smallest accepted count; survivors stay as drafts.

    `old_distribution` lets survivors keep the distribution they were drawn from, as the authors' code does.
    """
    rows, vocab, noise = groups * 3, model.vocab, Noise(seeded(11))
    keys, slots = torch.arange(rows), torch.arange(window)
    prompt = torch.full((rows, 1), vocab)
    sequence = torch.zeros(rows, length + window, dtype=torch.long)
    start, carried = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
    drafted = torch.zeros(rows, window - 1, vocab, dtype=torch.float64)
    for step in range(length):
        places = start[:, None] + slots
        counts = (length - start - 1).clamp(min=0, max=window - 1)
        new = slots[:-1] >= carried[:, None]
        random = (noise.uniform(keys, step, places[:, :-1], 2) * vocab).long()
        drafts = torch.where(new, random, sequence.gather(1, places[:, :-1]))
        sequence.scatter_(1, places[:, :-1], drafts)
        point = torch.nn.functional.one_hot(drafts, vocab).double()
        drafted = torch.where(new[..., None], point, drafted)
        fed = torch.cat([prompt, sequence[:, : length - 1]], 1)
        target = model(fed, positions=None, cache=model.new_cache(rows, length), keep=length).softmax(-1)
        target = target.gather(1, places.clamp(max=length - 1)[..., None].expand(-1, -1, vocab))
        uniforms = (noise.uniform(keys, step, places[:, :-1], ACCEPT), noise.uniform(keys, step, places, DRAW))
        tokens, accepted = verify_chain(drafts, drafted, target, counts, *uniforms)
        live = start < length
        sequence = torch.where(live[:, None], sequence.scatter(1, places, tokens), sequence)
        advance = accepted.view(-1, 3).amin(1).repeat_interleave(3) + 1
        survived = slots[:-1] < accepted[:, None]
        kept = torch.where((survived & old_distribution)[..., None], drafted, target[:, :-1])
        shifted = (advance[:, None] + slots[:-1]).clamp(max=window - 2)[..., None].expand(-1, -1, vocab)
        last = advance[:, None] + slots[:-1] == window - 1  # the slot behind the drafts has no old distribution
        drafted = torch.where(last[..., None], target[:, -1:], kept.gather(1, shifted))
        carried = (counts + 1 - advance).clamp(min=0)
        start = torch.where(live, start + advance, start)
    return sequence[:, :length]


def test_lock_step_with_old_distributions_fails_the_same_test():
    model = TableModel(3, 4, seed=0)
    joint = exact_joint(model, torch.full((1, 1), 3), 4, Sampler())
    assert p_value(lock_step(model, 4, 4, 14_000, old_distribution=True), 3, joint) < 1e-6
    assert p_value(lock_step(model, 4, 4, 14_000, old_distribution=False), 3, joint) > 1e-3


def tiny(seed, **options):
    torch.manual_seed(seed)
    model = Decoder(11, 40, 16, 2, 2, conditions=2, **options).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)  # far from uniform
    return model


@pytest.mark.parametrize("seed", range(20))
def test_jacobi_is_greedy(seed):
    model, prompt = tiny(seed), torch.randint(0, 11, (3, 4), generator=seeded(seed))
    greedy = generate(model, prompt, 20, temperature=0)
    out = SpeculativeJacobi(5, scheme="jacobi").generate(model, prompt, 20)
    assert torch.equal(out.tokens, greedy.tokens)
    assert (out.stats.nfe <= 20).all()


def test_window_one_and_fixed_noise_reproduce_next_token_sampling():
    model, prompt = tiny(0), torch.randint(0, 11, (5, 3))
    for options in ({}, {"top_k": 4, "temperature": 0.8}, {"cfg_scale": 1.7, "uncond_ids": torch.full((5, 1), 12)}):
        plain = generate(model, prompt, 20, generator=seeded(3), **options)
        assert torch.equal(
            SpeculativeJacobi(1).generate(model, prompt, 20, generator=seeded(3), **options).tokens, plain.tokens
        )
        fixed = SpeculativeJacobi(6, scheme="jacobi_fixed_noise")
        assert torch.equal(fixed.generate(model, prompt, 20, generator=seeded(3), **options).tokens, plain.tokens)


def test_rows_do_not_depend_on_the_batch():
    model, prompt = tiny(1), torch.randint(0, 11, (9, 3))
    decoder = SpeculativeJacobi(4)
    whole = decoder.generate(model, prompt, 20, generator=seeded(5)).tokens
    for size in (1, 3):
        parts = [
            decoder.generate(model, prompt[rows], 20, generator=seeded(5), rows=rows).tokens
            for rows in torch.arange(9).split(size)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_forward_bounds(window):
    model, prompt = tiny(2), torch.full((16, 1), 11)
    out = SpeculativeJacobi(window).generate(model, prompt, 21, generator=seeded(0))
    assert (out.stats.nfe >= math.ceil(21 / window)).all() and (out.stats.nfe <= 21).all()
    assert out.stats.lengths.tolist() == [21] * 16
    committed = torch.stack([accepted + 1 for accepted in out.stats.accepted]).sum(0)
    assert torch.equal(committed, torch.full((16,), 21))
    assert sum(out.stats.histogram().values()) == int(out.stats.nfe.sum())
    assert int(out.stats.from_draft.sum()) == 16 * 21 - int(out.stats.nfe.sum())


def test_drafts_of_a_context_free_model_are_always_accepted():
    model = TableModel(3, 8, seed=0, independent=True)
    out = SpeculativeJacobi(4).generate(model, torch.full((500, 1), 3), 8, generator=seeded(0))
    remaining = torch.full((500,), 8)
    carried = torch.zeros(500, dtype=torch.long)
    for accepted in out.stats.accepted:
        live = accepted >= 0
        assert (accepted >= carried)[live].all()
        counts = (remaining - 1).clamp(max=3)
        remaining = remaining - (accepted + 1)
        carried = torch.minimum(counts - accepted, remaining - 1)


@pytest.mark.parametrize("cfg", [False, True])
def test_cached_probabilities_equal_a_full_recompute(monkeypatch, cfg):
    model = tiny(3).float()
    prompt = torch.randint(0, 11, (4, 5), generator=seeded(0))
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, :2] = mask[2, :4] = False
    propose, checked = DecodingState.propose, []

    def compare(state, drafts, counts):
        got = propose(state, drafts, counts)
        for index, row in enumerate(state.active.tolist()):
            done, real = int(state.length[index]), int(counts[index])
            behind = torch.cat([state.generated[row, :done], drafts[index, :real]])[None]
            full = model(torch.cat([prompt[row, mask[row]][None], behind], 1), keep=real + 1)
            if cfg:
                uncond = model(torch.cat([torch.full((1, 1), 12), behind], 1), keep=real + 1)
                full = uncond + 2.0 * (full - uncond)
            checked.append((got[index, : real + 1] - full.softmax(-1)[0]).abs().max())
        return got

    monkeypatch.setattr(DecodingState, "propose", compare)
    options = {"cfg_scale": 2.0, "uncond_ids": torch.full((4, 1), 12)} if cfg else {}
    SpeculativeJacobi(4).generate(model, prompt, 20, prompt_mask=mask, generator=seeded(1), **options)
    assert len(checked) > 30 and max(checked) < 1e-5


class Spy:
    """Passes calls through and notes how many tokens each fed."""

    def __init__(self, model):
        self.model, self.fed = model, []
        self.vocab, self.input_vocab, self.length = model.vocab, model.input_vocab, model.length

    def new_cache(self, batch, capacity):
        return self.model.new_cache(batch, capacity)

    def __call__(self, tokens, **options):
        self.fed.append(tokens.shape[1])
        return self.model(tokens, **options)


def test_drafts_past_the_end_are_never_evaluated():
    spy = Spy(tiny(4))
    out = SpeculativeJacobi(8).generate(spy, torch.full((1, 1), 11), 13, generator=seeded(0))
    done = 0
    for fed, accepted in zip(spy.fed, out.stats.accepted):
        assert fed == min(8, 13 - done)
        done += int(accepted) + 1
    assert done == 13


def test_nothing_is_committed_behind_an_end_token():
    model, prompt = tiny(5), torch.full((64, 1), 11)
    out = SpeculativeJacobi(6).generate(model, prompt, 30, eos_id=3, pad_id=9, generator=seeded(0))
    generated = out.tokens[:, 1:]
    ended = 0
    for row, length in zip(generated, out.stats.lengths.tolist()):
        assert (row[: length - 1] != 3).all()
        assert row[length - 1] == 3 or length == 30
        assert (row[length:] == 9).all()
        ended += length < 30
    assert ended > 20


def test_end_tokens_keep_the_distribution():
    model = TableModel(3, 4, seed=9)
    prompt = torch.full((ROWS, 1), 3)
    plain = generate(model, prompt, 4, eos_id=0, pad_id=0, generator=seeded(1))
    ours = SpeculativeJacobi(4).generate(model, prompt, 4, eos_id=0, pad_id=0, generator=seeded(2))
    joint = exact_joint(model, prompt[:1], 4, Sampler())
    merged = torch.zeros(81, dtype=torch.float64)
    for index, mass in enumerate(joint):
        digits = [index // 3**k % 3 for k in (3, 2, 1, 0)]
        end = digits.index(0) if 0 in digits else 4
        digits = digits[:end] + [0] * (4 - end)
        merged[int(sequence_index(torch.tensor([digits]), 3))] += mass
    for out in (plain, ours):
        assert p_value(out.tokens[:, 1:], 3, merged) > 1e-3


def test_auto_window_is_one_that_was_measured():
    model, prompt = tiny(6), torch.full((2, 1), 11)
    table = calibrate(model, prompt, 20, windows=(1, 4), tokens=8)
    assert [row["window"] for row in table] == [1, 4]
    assert all(
        row["seconds_per_token"] * row["tokens_per_forward"] == pytest.approx(row["seconds_per_forward"])
        for row in table
    )
    out = SpeculativeJacobi("auto").generate(model, prompt, 20, generator=seeded(0))
    assert out.stats.window in {row["window"] for row in out.stats.calibration}


def test_acceptance_map_leaves_out_end_of_line_tokens():
    model, prompt = tiny(7), torch.full((8, 1), 11)
    init = SpatialInit("repeat_h", (3, 4), eol_id=2)
    decoder = SpeculativeJacobi(4, init)
    out = decoder.generate(model, prompt, 15, processors=(EndOfLine(4, 2), AllowedTokens(0, 8)), generator=seeded(0))
    assert out.stats.acceptance_map((3, 4), eol=True).shape == (3, 4)
    assert out.tokens[:, 1:].max() < 8
    assert set(out.stats.seconds) == {"model", "other"} and out.stats.kv_bytes > 0


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: SpeculativeJacobi(0), "window must be at least 1"),
        (lambda: SpeculativeJacobi("wide"), "window must be at least 1 or 'auto'"),
        (lambda: SpeculativeJacobi(4, scheme="greedy"), "scheme must be"),
        (lambda: SpeculativeJacobi(4, redraw="never"), "redraw must be"),
        (lambda: SpatialInit("repeat_h"), "needs grid"),
        (lambda: SpatialInit("random", eol_id=1), "needs grid"),
        (lambda: SpatialInit("diagonal", (2, 2)), "kind must be one of"),
        (lambda: SpatialInit("random", (2, 2), order=snake((2, 2))), "order must be raster"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"init": SpatialInit("random", (3, 5))}, "holds 15 tokens, max_new_tokens is 8"),
        ({"init": SpatialInit("random", vocabulary=(0, 50))}, "vocabulary must lie in"),
        ({"init": SpatialInit("random", (2, 3), eol_id=11)}, "eol_id must lie in"),
        ({"prompt_mask": torch.tensor([[True, True, False]])}, "padded on the left"),
        ({"prompt_mask": torch.tensor([[False, False, False]])}, "at least one token"),
        ({"cfg_scale": 3.0}, "needs uncond_ids"),
        ({"cfg_scale": 3.0, "uncond_ids": torch.full((2, 1), 12)}, "must have 1 rows"),
        ({"cfg_scale": 3.0, "uncond_ids": torch.full((1, 1), 13)}, "uncond_ids tokens must lie in the vocabulary"),
        ({"prompt": torch.full((1, 3), 99)}, "prompt tokens must lie in the vocabulary"),
        ({"prompt": torch.full((1, 3), 1.0)}, "must be int64"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 60}, "the model has 40"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_p": 1.5}, "top_p must lie"),
        ({"eos_id": 11}, "eos_id must lie"),
    ],
)
def test_bad_requests(change, message):
    options = {"prompt": torch.full((1, 3), 1), "max_new_tokens": 8} | change
    decoder = SpeculativeJacobi(4, options.pop("init", None))
    with pytest.raises(ValueError, match=message):
        decoder.generate(tiny(0), options.pop("prompt"), options.pop("max_new_tokens"), **options)


def test_wrong_logit_width_is_refused():
    model = tiny(0)
    model.vocab = 12
    with pytest.raises(ValueError, match="model must return logits"):
        generate(model, torch.full((1, 1), 1), 4)


def test_nan_logits_name_the_position():
    class Broken(Spy):
        def __call__(self, tokens, *, positions, cache, keep):
            logits = self.model(tokens, positions=positions, cache=cache, keep=keep)
            if cache.lengths.max() > 6:
                logits[:, -1] = torch.nan
            return logits

    for decoder in (generate, SpeculativeJacobi(1, scheme="jacobi").generate):
        with pytest.raises(ValueError, match="row 0 at generated position 4"):
            decoder(Broken(tiny(0)), torch.full((2, 3), 1), 10)

"""Grids drawn group by group: the distribution, the cache, guidance, known cells."""

import itertools

import pytest
import torch
from torch import nn

from flambeau.generation.enumeration import chi_square
from flambeau.generation.group_parallel import generate_grid, grid_probabilities
from flambeau.models.token_grid import NAR, QueryDecoder
from flambeau.nn.order import custom, random_order


def nar(vocab=3, grid=(2, 3), **options):
    torch.manual_seed(0)
    return spread(NAR(vocab, grid, 16, 1, 2, **options))


def spread(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every(vocab, grid):
    cells = torch.Size(grid).numel()
    return torch.tensor(list(itertools.product(range(vocab), repeat=cells))).view(-1, *grid)


MODELS = [
    lambda: nar(),
    lambda: nar(mix="probabilities"),
    lambda: nar(mix="single"),
    lambda: nar(origin=(1, 1)),
    lambda: spread(QueryDecoder(3, random_order((2, 3), 0, 4), 16, 1, 2)),
]


@pytest.mark.parametrize("build", MODELS)
def test_cached_steps_are_the_training_forward(build):
    model = build()
    grids = every(3, (2, 3))
    with torch.no_grad():
        torch.testing.assert_close(
            grid_probabilities(model, grids), 2.0 ** -model.nll(grids).double(), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("build", MODELS[:1] + MODELS[4:])
def test_draws_have_the_models_distribution(build):
    model = build()
    drawn = generate_grid(model, batch=20_000, generator=generator()).tokens
    place = (drawn.flatten(1) * 3 ** torch.arange(5, -1, -1)).sum(1)
    with torch.no_grad():
        expected = 2.0 ** -model.nll(every(3, (2, 3))).double()
    assert chi_square(torch.bincount(place, minlength=729).double(), expected / expected.sum()) > 0.001


def test_greedy_grids_are_the_argmax_of_the_training_forward():
    model = nar(vocab=7, grid=(4, 5), classes=3)
    labels = torch.tensor([0, 1, 2])
    out = generate_grid(model, labels, temperature=0.0)
    with torch.no_grad():
        assert torch.equal(model(out.tokens, labels).argmax(-1), out.tokens)
    assert out.forwards == 4 + 5 - 1


def test_the_order_of_cells_within_a_group_does_not_matter():
    order = random_order((3, 3), 0, 3)
    turned = custom([group.flip(0) for group in order.groups], (3, 3))
    one, other = (spread(QueryDecoder(4, o, 16, 1, 2)) for o in (order, turned))
    other.load_state_dict(one.state_dict())
    draws = [generate_grid(m, batch=50, generator=generator()).tokens for m in (one, other)]
    assert torch.equal(*draws)


def test_guidance_is_computed_on_logits_and_within_its_interval():
    model = nar(vocab=5, grid=(3, 3), classes=2)
    labels = torch.tensor([0, 1])
    plain = generate_grid(model, labels, temperature=0.0)
    outside = generate_grid(model, labels, cfg_scale=5.0, cfg_interval=(9, 9), temperature=0.0)
    assert torch.equal(plain.tokens, outside.tokens)
    guided = generate_grid(model, labels, cfg_scale=5.0, temperature=0.0)
    with torch.no_grad():
        conditional, unconditional = model(guided.tokens, labels), model(guided.tokens)
    expected = (unconditional + 5.0 * (conditional - unconditional)).argmax(-1)
    assert torch.equal(expected, guided.tokens) and guided.forwards == plain.forwards


def test_known_cells_are_kept_fed_together_and_what_follows_is_the_models():
    model = nar(vocab=5, grid=(4, 4))
    whole = generate_grid(model, batch=3, generator=generator()).tokens
    known = torch.full_like(whole, -1)
    known[:, :3, :3] = whole[:, :3, :3]
    out = generate_grid(model, known=known, generator=generator())
    assert torch.equal(out.tokens, whole)  # noise belongs to row and cell, so the rest comes out alike
    assert out.forwards == 1 + 4  # distances 0..2 with the condition's forward and one more; then 3, 4 and 5
    left = torch.full_like(whole, -1)
    left[:, :, :2] = (whole[:, :, :2] + 1) % 5
    out = generate_grid(model, known=left, temperature=0.0)
    assert torch.equal(out.tokens[:, :, :2], left[:, :, :2])
    with torch.no_grad():
        assert torch.equal(model(out.tokens).argmax(-1)[:, :, 2:], out.tokens[:, :, 2:])


def test_rows_do_not_depend_on_the_batch():
    model = nar(vocab=5, grid=(3, 3), classes=4)
    labels = torch.arange(4)
    whole = generate_grid(model, labels, generator=generator()).tokens
    part = generate_grid(model, labels[2:], generator=generator(), rows=torch.tensor([2, 3])).tokens
    assert torch.equal(whole[2:], part)


def test_several_groups_in_one_forward_verify_a_draft():
    model = nar(vocab=5, grid=(3, 3))
    tokens = torch.randint(0, 5, (2, 3, 3), generator=generator())
    flat, order = tokens.flatten(1), model.order
    with torch.no_grad():
        expected = model(tokens).flatten(1, 2)
        cache = model.new_cache(2)
        model.begin(cache, model.condition.null(2))
        draft = flat[:, torch.cat(order.groups[:3])]
        logits = model.advance(cache, range(3), (draft + 1) % 5)
        logits = model.advance(cache, range(3), draft)  # fed again: the wrong draft is overwritten
    torch.testing.assert_close(logits, expected[:, torch.cat(order.groups[1:4])])


def test_padded_text_is_hidden_from_cached_steps_too():
    model = nar(vocab=7, grid=(3, 4), text_dim=6, condition_tokens=4)
    text = torch.randn(2, 4, 6, generator=generator())
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    out = generate_grid(model, text, condition_mask=mask, temperature=0.0).tokens
    with torch.no_grad():
        assert torch.equal(model(out, text, mask).argmax(-1), out)
    known = out.masked_fill(model.order.step_of.view(3, 4) > 2, -1)  # three groups are fed together behind the text
    again = generate_grid(model, text, condition_mask=mask, known=known, temperature=0.0)
    assert torch.equal(again.tokens, out) and again.forwards == 1 + 3
    text[0, :2] = 100.0
    assert torch.equal(generate_grid(model, text, condition_mask=mask, temperature=0.0).tokens, out)


def test_bad_requests_are_named():
    model = nar(classes=2)
    with pytest.raises(ValueError, match="give condition, known or batch"):
        generate_grid(model)
    with pytest.raises(ValueError, match="needs a condition"):
        generate_grid(model, batch=2, cfg_scale=2.0)
    known = torch.full((1, 2, 3), -1)
    known[0, 1, 1] = 0
    with pytest.raises(ValueError, match=r"cell \(1, 1\) of row 0 is given"):
        generate_grid(model, known=known)
    with pytest.raises(ValueError, match="tokens 0..2, got 3..3"):
        generate_grid(model, known=torch.full((1, 2, 3), 3))
    with pytest.raises(ValueError, match=r"known must be \[2, 2, 3\]"):
        generate_grid(model, torch.tensor([0, 1]), known=known)
    query = spread(QueryDecoder(3, custom([[0, 1], [2, 3], [4, 5]], (2, 3)), 16, 1, 2))
    known = torch.full((1, 2, 3), -1)
    known[0, 1, 1] = 0
    with pytest.raises(ValueError, match=r"cell \(0, 0\) of row 0 is missing"):
        generate_grid(query, known=known)
    broken = nar()
    nn.init.constant_(broken.heads[0].output.weight, float("nan"))
    with pytest.raises(ValueError, match="row 0 at generated position 0"):
        generate_grid(broken, batch=1)

"""NAR: what each cell sees, which heads predict it, and that the likelihood is normalised."""

import itertools
import math

import pytest
import torch
from torch import nn

from flambeau.models.language import Decoder
from flambeau.models.token_grid import NAR, QueryDecoder, nar_from_llamagen
from flambeau.models.token_grid.llamagen import halves
from flambeau.nn.order import diagonal, random_order, raster


def model(vocab=5, grid=(3, 4), depth=1, **options):
    torch.manual_seed(0)
    built = NAR(vocab, grid, 24 if len(grid) == 3 else 16, depth, 2, **options).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def draw(grid, vocab=5, batch=2, seed=0):
    return torch.randint(0, vocab, (batch, *grid), generator=torch.Generator().manual_seed(seed))


GRIDS = [(5,), (3, 4), (6, 2), (2, 3, 4)]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_cell_sees_what_is_not_further_away(grid):
    built = model(grid=grid)
    cells = list(itertools.product(*(range(size) for size in grid)))
    for i, a in enumerate(cells):
        assert not built.mask[0, 1 + i] and built.mask[1 + i, 0]
        for j, b in enumerate(cells):
            assert built.mask[1 + i, 1 + j] == (sum(b) <= sum(a))
    assert built.order.steps == sum(grid) - len(grid) + 1


@pytest.mark.parametrize("grid, origin", [((5,), None), ((3, 4), None), ((3, 4), (1, 2)), ((2, 3, 2), None)])
@pytest.mark.parametrize("mix", ["logits", "probabilities", "gate", "single"])
def test_logits_do_not_depend_on_cells_as_far_away_or_further(grid, origin, mix):
    built = model(grid=grid, origin=origin, mix=mix)
    tokens = draw(grid, batch=1)
    before = built(tokens).flatten(1, -2)[0]
    step = built.order.step_of
    for cell in range(tokens.numel()):
        changed = tokens.flatten().clone()
        changed[step >= step[cell]] = (changed[step >= step[cell]] + 1) % 5
        after = built(changed.view_as(tokens)).flatten(1, -2)[0]
        assert torch.equal(after[cell], before[cell])


def test_gradients_reach_nearer_cells_only():
    built = model()
    tokens = draw((3, 4), batch=1)
    embedded = built.embedding(tokens.flatten(1)).detach().requires_grad_()
    built.embedding.forward = lambda _: embedded
    logits = built(tokens).flatten(1, -2)[0]
    for cell, step in enumerate(built.order.step_of):
        (gradient,) = torch.autograd.grad(logits[cell].square().sum(), embedded, retain_graph=True, allow_unused=True)
        reached = gradient[0].abs().sum(1) > 0
        assert torch.equal(reached, built.order.step_of < step) or step == 0 and not reached.any()


def test_the_likelihood_is_normalised():
    built = model(vocab=3, grid=(2, 3))
    every = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 2, 3)
    with torch.no_grad():
        assert (2.0 ** -built.nll(every).double()).sum() == pytest.approx(1, abs=1e-5)


def test_a_cell_is_the_mean_of_its_parents_heads():
    built = model(extra_blocks=0)
    tokens = draw((3, 4))
    rows = torch.arange(13)
    x = torch.cat([built.condition(built.condition.null(2)), built.embedding(tokens.flatten(1))], 1)
    right, below = (s for s in built._states(x, rows, built.mask, None, None))
    right, below = built.heads[0].output(right), built.heads[1].output(below)
    logits = built(tokens)
    for h, w in itertools.product(range(3), range(4)):
        cell = 1 + 4 * h + w
        parents = [right[:, cell - 1]] if w else []
        parents += [below[:, cell - 4]] if h else []
        if not h and not w:
            parents = [right[:, 0], below[:, 0]]
        torch.testing.assert_close(logits[:, h, w], torch.stack(parents).mean(0))


def test_transposing_the_grid_and_swapping_the_heads_transposes_the_output():
    one, other = model(grid=(3, 4), extra_blocks=0), model(grid=(4, 3), extra_blocks=0)
    other.load_state_dict(one.state_dict())
    other.heads = nn.ModuleList([one.heads[1], one.heads[0]])
    # The axes' halves of the rotary table change places with the axes.
    table = one.rotary.table.unflatten(-1, (2, 2, 2)).flip(-2).flatten(-3)
    cells = torch.arange(12).view(3, 4).T.flatten()
    other.rotary.table = torch.cat([table[:1], table[1:][cells]])
    # Heads of 8 channels: 2 axes times 2 frequencies in each half; keys and queries are permuted alike.
    for block in other.blocks:
        weight = block.attention.qkv.weight.data
        queries_and_keys = weight[:32].view(4, 2, 2, 2, 16)
        weight[:32] = queries_and_keys.flip(2).reshape(32, 16)
    tokens = draw((3, 4))
    torch.testing.assert_close(other(tokens.transpose(1, 2)), one(tokens).transpose(1, 2))


def test_on_a_line_it_is_an_ordinary_causal_model():
    nar = model(grid=(6,), depth=2)
    causal = Decoder(5, 6, 16, 2, 2, grid=(6,), conditions=1).eval()
    state = {name: value for name, value in nar.state_dict().items() if name.startswith("blocks.")}
    state |= {
        "embedding.weight": torch.cat([nar.embedding.weight, nar.condition.embedding.weight]),
        "norm.weight": nar.heads[0].norm.weight,
        "head.weight": nar.heads[0].output.weight,
    }
    causal.load_state_dict(state)
    tokens = draw((6,))
    fed = torch.cat([torch.full((2, 1), 5), tokens[:, :-1]], 1)
    torch.testing.assert_close(nar(tokens), causal(fed))


def test_padded_text_does_not_count():
    built = model(text_dim=6, condition_tokens=4)
    text = torch.randn(2, 4, 6)
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    tokens = draw((3, 4))
    before = built(tokens, text, mask)
    text[0, :2] = 100.0
    after = built(tokens, text, mask)
    assert torch.equal(before, after) and torch.isfinite(after).all()
    text[0, 2] = 100.0
    assert not torch.equal(built(tokens, text, mask), after)


def test_every_forward_counts_each_token_once():
    from torch.utils.flop_counter import FlopCounterMode

    from flambeau.generation.group_parallel import generate_grid

    built = model(grid=(4, 4), extra_blocks=0)
    with FlopCounterMode(display=False) as parallel:
        generated = generate_grid(built, batch=1)
    assert generated.forwards == 4 + 4 - 1  # a prefill for the first cell, then one for every further distance
    causal = Decoder(5, 16, 16, 1, 2, grid=(4, 4), conditions=1).eval()
    cache = causal.new_cache(1, 16)
    with FlopCounterMode(display=False) as sequential, torch.no_grad():
        for _ in range(16):
            causal(torch.zeros(1, 1, dtype=torch.long), cache=cache)

    def of(counter, word):
        return sum(v for module in counter.flop_counts.values() for k, v in module.items() if word in str(k)) / 2

    # The last cell is never fed by NAR; matrices cost the same for all others, but for its second output matrix.
    linear = {name: of(counter, "mm") for name, counter in (("nar", parallel), ("raster", sequential))}
    assert linear["nar"] < 1.25 * linear["raster"]


def test_a_query_decoder_sees_earlier_groups_only():
    built = QueryDecoder(5, random_order((3, 4), 0, 5), 16, 1, 2).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = draw((3, 4), batch=1)
    before = built(tokens).flatten(1, -2)[0]
    step = built.order.step_of
    for cell in range(12):
        changed = tokens.flatten().clone()
        changed[step >= step[cell]] = (changed[step >= step[cell]] + 1) % 5
        assert torch.equal(built(changed.view_as(tokens)).flatten(1, -2)[0, cell], before[cell])
        nearer = (step < step[cell]).nonzero()
        if len(nearer):
            changed = tokens.flatten().clone()
            changed[nearer[0]] = (changed[nearer[0]] + 1) % 5
            assert not torch.equal(built(changed.view_as(tokens)).flatten(1, -2)[0, cell], before[cell])


def llamagen_logits(state, tokens, labels, heads, side):
    """LlamaGen's raster forward, with complex rotation in interleaved pairs."""
    width = state["norm.weight"].shape[0]
    size = width // heads

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    rates = 10000.0 ** (-torch.arange(size // 4) / (size // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([y.flatten()[:, None] * rates, x.flatten()[:, None] * rates], 1)
    turn = torch.cat([torch.zeros(1, size // 2), torch.polar(torch.ones(()), angles)])
    h = torch.cat(
        [state["cls_embedding.embedding_table.weight"][labels][:, None], state["tok_embeddings.weight"][tokens]], 1
    )
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    for layer in range(depth):
        part = {k.removeprefix(f"layers.{layer}."): v for k, v in state.items() if k.startswith(f"layers.{layer}.")}
        q, k, v = (norm(h, part["attention_norm.weight"]) @ part["attention.wqkv.weight"].T).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, size)).transpose(1, 2) for t in (q, k, v))
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for t in (q, k)
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(size)).masked_fill(
            ~torch.ones(h.shape[1], h.shape[1]).tril().bool(), -torch.inf
        )
        h = h + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ part["attention.wo.weight"].T
        u = norm(h, part["ffn_norm.weight"])
        gated = nn.functional.silu(u @ part["feed_forward.w1.weight"].T) * (u @ part["feed_forward.w3.weight"].T)
        h = h + gated @ part["feed_forward.w2.weight"].T
    return norm(h, state["norm.weight"]) @ state["output.weight"].T


def test_released_weights_become_trunk_and_first_head(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        "tok_embeddings.weight": weight(7, 16), "cls_embedding.embedding_table.weight": weight(4, 16),
        "norm.weight": 1 + weight(16), "output.weight": weight(7, 16), "freqs_cis": torch.zeros(3),
    }  # fmt: skip
    for layer in range(2):
        shapes = {
            "attention.wqkv.weight": (48, 16), "attention.wo.weight": (16, 16), "attention_norm.weight": (16,),
            "ffn_norm.weight": (16,), "feed_forward.w1.weight": (24, 16), "feed_forward.w3.weight": (24, 16),
            "feed_forward.w2.weight": (16, 24),
        }  # fmt: skip
        state |= {f"layers.{layer}.{name}": weight(*shape) for name, shape in shapes.items()}
    torch.save({"model": state}, tmp_path / "c2i.pt")
    nar = nar_from_llamagen(tmp_path / "c2i.pt", heads=2, grid=(3, 3)).eval()
    assert nar.vocab == 7 and nar.condition.classes == 3
    # With the raster mask in place of NAR's, the trunk and its head are LlamaGen.
    tokens, labels = draw((3, 3), vocab=7), torch.tensor([1, 2])
    nar.mask = torch.ones(10, 10).tril().bool()
    x = torch.cat([nar.condition(labels), nar.embedding(tokens.flatten(1))], 1)
    states = nar._states(x, torch.arange(10), nar.mask, None, None)
    theirs = llamagen_logits(state, tokens.flatten(1), labels, 2, 3)
    torch.testing.assert_close(nar.heads[0].output(states[0]), theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(nar.heads[1].output.weight, nar.heads[0].output.weight)
    for mine, copied in zip(nar.heads[1].blocks[0].parameters(), nar.blocks[1].parameters()):
        assert torch.equal(mine, copied) and mine is not copied


def test_files_that_are_no_such_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        nar_from_llamagen(tmp_path / "nothing.pt", heads=2)
    (tmp_path / "noise.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        nar_from_llamagen(tmp_path / "noise.pt", heads=2)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no class-conditional LlamaGen checkpoint"):
        nar_from_llamagen(tmp_path / "other.pt", heads=2)
    with pytest.raises(ValueError, match="heads of even size"):
        halves(torch.zeros(6, 2), 2)


def test_bad_input_is_named():
    built = model(classes=3)
    with pytest.raises(ValueError, match=r"tokens must lie in 0..4, got 0..5"):
        built(torch.tensor([[[0, 1, 2, 5]] * 3]))
    with pytest.raises(ValueError, match=r"tokens must be \[batch, 3, 4\], got \[2, 4, 3\]"):
        built(draw((4, 3)))
    with pytest.raises(ValueError, match="labels 0..3, got 0..4"):
        built(draw((3, 4)), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="condition must have 2 rows like the tokens, got 3"):
        built(draw((3, 4)), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"condition must be \[batch, 4, 6\], got \[2, 5, 6\]"):
        model(text_dim=6, condition_tokens=4)(draw((3, 4)), torch.randn(2, 5, 6))
    with pytest.raises(ValueError, match="mix must be"):
        NAR(5, (2, 2), 16, 1, 2, mix="sum")
    with pytest.raises(ValueError, match="not both"):
        NAR(5, (2, 2), 16, 1, 2, classes=2, text_dim=4)
    with pytest.raises(ValueError, match="divisible by heads"):
        NAR(5, (2, 2), 16, 1, 3)
    with pytest.raises(ValueError, match="origin must be a cell"):
        NAR(5, (2, 2), 16, 1, 2, origin=(2, 0))


@pytest.mark.parametrize("order", [raster((3, 3)), diagonal((3, 3))])
def test_a_query_decoder_in_any_order_is_normalised_too(order):
    built = QueryDecoder(2, order, 8, 1, 1).eval()
    every = torch.tensor(list(itertools.product(range(2), repeat=9))).view(-1, 3, 3)
    with torch.no_grad():
        assert (2.0 ** -built.nll(every).double()).sum() == pytest.approx(1, abs=1e-5)

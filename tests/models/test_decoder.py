"""The decoder is causal, and every way of feeding its cache gives the logits of one full pass."""

import pytest
import torch

from flambeau.models.language import Decoder
from flambeau.nn.order import diagonal

VARIANTS = [
    {},
    {"kv_heads": 2},
    {"position": "learned"},
    {"grid": (4, 6), "qk_norm": True},
    {"grid": (4, 6), "kv_heads": 1, "prefix": 2},
]


def build(**options):
    torch.manual_seed(0)
    return Decoder(13, 24, 32, 3, 4, conditions=1, **options).double().eval()


@pytest.mark.parametrize("options", VARIANTS)
def test_changing_the_future_changes_nothing_before_it(options):
    model, tokens = build(**options), torch.randint(0, 13, (2, 24))
    logits = model(tokens)
    for place in (1, 7, 23):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 5) % 13
        difference = (model(changed) - logits).abs().amax((0, 2))
        assert (difference[:place] == 0).all() and difference[place] > 0


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_random_interleavings_of_cache_operations(options, seed):
    model, generator = build(**options), torch.Generator().manual_seed(seed)
    rows = [[] for _ in range(3)]
    cache = model.new_cache(3, 32)
    with torch.inference_mode():
        for _ in range(25):
            choice = int(torch.randint(4, (), generator=generator))
            room = 24 - max(len(row) for row in rows)
            if choice <= 1 and room:
                new = int(torch.randint(1, min(4, room) + 1, (), generator=generator))
                tokens = torch.randint(0, 13, (len(rows), new), generator=generator)
                logits = model(tokens, cache=cache)
                for index, row in enumerate(rows):
                    row.extend(tokens[index].tolist())
                    full = model(torch.tensor([row]))[0, -new:]
                    assert (logits[index] - full).abs().max() < 1e-10
            elif choice == 2:
                kept = [int(torch.randint(len(row) + 1, (), generator=generator)) for row in rows]
                rows = [row[:keep] for row, keep in zip(rows, kept)]
                cache.truncate(torch.tensor(kept))
            elif choice == 3:
                order = torch.randint(0, len(rows), (3,), generator=generator)
                rows = [list(rows[index]) for index in order.tolist()]
                cache.select(order)
            assert cache.lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("ragged", [False, True])
def test_tree_nodes_equal_their_root_path_and_commit(ragged):
    model, prefix = build(), torch.randint(0, 13, (2, 5))
    parents = [-1, 0, 0, 1, 1, 2]  # two branches below the root
    tree = torch.randint(0, 13, (2, 6))
    visible = torch.eye(6, dtype=torch.bool)
    depth = torch.zeros(6, dtype=torch.long)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
            depth[node] = depth[parent] + 1
    lengths = torch.tensor([5, 3]) if ragged else torch.tensor([5, 5])
    with torch.inference_mode():
        cache = model.new_cache(2, 20)
        model(prefix, cache=cache)
        cache.truncate(lengths)
        logits = model(tree, cache=cache, mask=visible, positions=lengths[:, None] + depth)
        for row in range(2):
            start = prefix[row, : lengths[row]]
            for node in range(6):
                path = visible[node].nonzero()[:, 0]
                full = model(torch.cat([start, tree[row, path]])[None])[0, -1]
                assert (logits[row, node] - full).abs().max() < 1e-10
        cache.gather(lengths, torch.tensor([[0, 1, 4], [0, 2, 5]]), torch.tensor([3, 2]))
        after = model(torch.full((2, 1), 4), cache=cache)
        for row, path in enumerate(([0, 1, 4], [0, 2])):
            full = model(torch.cat([prefix[row, : lengths[row]], tree[row, path], torch.tensor([4])])[None])[0, -1]
            assert (after[row, 0] - full).abs().max() < 1e-10


def test_scattered_slots_equal_one_masked_pass():
    order = diagonal((3, 4))
    model = Decoder(13, 12, 32, 3, 4, grid=(3, 4), prefix=0).double().eval()
    tokens, mask = torch.randint(0, 13, (2, 12)), order.mask("content")
    with torch.inference_mode():
        full = model(tokens, mask=mask)
        cache = model.new_cache(2, 12)
        for group in order.groups:
            slots = group.expand(2, -1)
            step = model(tokens[:, group], cache=cache, slots=slots, mask=mask[group])
            assert (step - full[:, group]).abs().max() < 1e-10


def test_clone_prefix_continues_like_the_original():
    model, tokens = build(), torch.randint(0, 13, (1, 8))
    with torch.inference_mode():
        cache = model.new_cache(1, 24)
        model(tokens, cache=cache)
        clone = cache.clone_prefix(6, copies=2)
        logits = model(tokens[:, 6:].expand(2, -1), cache=clone)
        assert (logits - model(tokens)[:, 6:]).abs().max() < 1e-10
        assert cache.lengths.tolist() == [8]


def test_keep_and_size_bookkeeping():
    model, tokens = build(), torch.randint(0, 14, (2, 9))
    assert torch.equal(model(tokens, keep=3), model(tokens)[:, -3:])
    assert model(tokens).shape == (2, 9, 13) and model.input_vocab == 14


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 30}, "width must be divisible by heads"),
        ({"kv_heads": 3}, "heads must be divisible by kv_heads"),
        ({"position": "sine"}, "position must be"),
        ({"position": "learned", "grid": (4, 6)}, "grid shapes rotary angles"),
        ({"grid": (2, 2)}, "has 5 places, length is 24"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        Decoder(13, 24, **({"width": 32, "heads": 4} | options))

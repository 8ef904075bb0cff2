import random

import pytest
import torch

from flambeau.nn.kv_cache import KVCache
from flambeau.nn.paged_cache import PagedKVCache
from flambeau.ops.lean_attention import lean_decode


def append(caches, generator, new, **options):
    """The same tokens to every cache, in two layers of 2 heads of 8."""
    plans = [c.begin(new, **(options if isinstance(c, PagedKVCache) else {})) for c in caches]
    for layer in range(2):
        keys, values = (torch.randn(caches[0].batch, 2, new, 8, generator=generator) for _ in range(2))
        for cache, plan in zip(caches, plans):
            cache.write(layer, keys, values, plan)
    for cache, plan in zip(caches, plans):
        cache.commit(plan)


def gathered(cache, layer, row):
    """Keys and values of a row, read through the block table."""
    pages, length = cache.block_table[row].long(), int(cache.lengths[row])
    return [x[pages].transpose(0, 1).flatten(1, 2)[:, :length] for x in cache.read(layer)]


@pytest.mark.parametrize("page", [1, 3, 16])
def test_holds_what_the_contiguous_cache_holds(page):
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    paged, plain = PagedKVCache(2, 3, 200, page), KVCache(2, 3, 60)
    for _ in range(25):
        if int(plain.lengths.max()) > 50 or rng.random() < 0.3:
            cut = torch.tensor([rng.randint(0, n) for n in plain.lengths.tolist()])
            paged.truncate(cut)
            plain.truncate(cut)
        else:
            append([paged, plain], generator, rng.randint(1, 5))
        assert torch.equal(paged.lengths, plain.lengths)
        owned = [p for row in range(3) for p in paged.pages_of(row)]
        assert len(set(owned)) == len(owned) == 200 - paged.free_pages
        assert [len(paged.pages_of(row)) for row in range(3)] == [-(-n // page) for n in plain.lengths.tolist()]
    for layer in range(2):
        keys, values = plain.read(layer)
        for row, length in enumerate(plain.lengths.tolist()):
            mine = gathered(paged, layer, row)
            assert torch.equal(mine[0], keys[row, :, :length]) and torch.equal(mine[1], values[row, :, :length])
    q = torch.randn(3, 4, 8, generator=generator)
    ours = lean_decode(q, *paged.read(1), paged.lengths, paged.block_table, workers=3, tile=16)
    torch.testing.assert_close(ours, lean_decode(q, *plain.read(1), plain.lengths), atol=1e-6, rtol=1e-5)
    assert paged.token_bytes == plain.token_bytes and paged.used_bytes == plain.used_bytes


def test_rows_take_different_counts_and_pages_come_back():
    cache = PagedKVCache(2, 3, pages=6, page=4)
    generator = torch.Generator().manual_seed(0)
    append([cache], generator, 5, counts=torch.tensor([5, 0, 2]))
    assert cache.lengths.tolist() == [5, 0, 2] and cache.free_pages == 3
    before = [x.clone() for x in gathered(cache, 0, 2)]
    append([cache], generator, 9, counts=torch.tensor([0, 9, 0]))
    assert cache.free_pages == 0
    with pytest.raises(ValueError, match="1 more pages of 4 tokens are needed, 0 are free"):
        cache.begin(4, counts=torch.tensor([0, 4, 0]))
    assert cache.lengths.tolist() == [5, 9, 2]
    cache.release(0)
    assert cache.free_pages == 2 and cache.lengths.tolist() == [0, 9, 2]
    append([cache], generator, 6, counts=torch.tensor([6, 0, 0]))
    assert all(torch.equal(a, b) for a, b in zip(before, gathered(cache, 0, 2)))


def test_beginning_again_without_commit_takes_no_more_pages():
    cache = PagedKVCache(1, 1, pages=4, page=4)
    for _ in range(3):
        plan = cache.begin(5)
    assert cache.free_pages == 2 and plan.slots.shape == (1, 5) and plan.positions.tolist() == [[0, 1, 2, 3, 4]]


def test_bad_input():
    for name in ("layers", "batch", "pages", "page", "capacity"):
        with pytest.raises(ValueError, match=name):
            PagedKVCache(**({"layers": 1, "batch": 1, "pages": 2, "page": 4, "capacity": 8} | {name: 0}))
    cache = PagedKVCache(1, 2, 10, 4, capacity=6)
    with pytest.raises(ValueError, match="capacity 6 cannot grow to 7"):
        cache.begin(7)
    with pytest.raises(ValueError, match="counts"):
        cache.begin(2, counts=torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="lengths must lie"):
        cache.truncate(1)
    with pytest.raises(ValueError, match="row must lie in 0..1"):
        cache.release(2)
    with pytest.raises(ValueError, match="layer 0 has not been written"):
        cache.read(0)

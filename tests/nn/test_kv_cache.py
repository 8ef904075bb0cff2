"""Cache operations on raw buffers; what models read through them is tested with the decoder."""

import pytest
import torch

from flambeau.nn.kv_cache import KVCache


def append(cache, keys, **plan):
    step = cache.begin(keys.shape[2], **plan)
    result = cache.write(0, keys, keys + 1, step)
    cache.commit(step)
    return result, step


def test_rows_of_different_length_keep_their_own_tokens():
    cache = KVCache(1, 3, 10)
    first, second = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 3, 5)
    append(cache, first)
    cache.truncate(torch.tensor([4, 1, 0]))
    (keys, values), step = append(cache, second)
    assert cache.lengths.tolist() == [7, 4, 3]
    for row, kept in enumerate((4, 1, 0)):
        expected = torch.cat([first[row, :, :kept], second[row]], 1)
        assert torch.equal(keys[row, :, : kept + 3], expected)
        assert torch.equal(values[row, :, : kept + 3], expected + 1)
        for slot in range(3):
            assert step.mask[row, 0, slot].nonzero()[:, 0].tolist() == list(range(kept + slot + 1))
    assert step.positions.tolist() == [[4, 5, 6], [1, 2, 3], [0, 1, 2]]


def test_gather_keeps_a_path_and_select_forks_rows():
    cache = KVCache(1, 2, 10)
    prefix, tree = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 5, 4)
    append(cache, prefix)
    append(cache, tree)
    cache.gather(torch.tensor([3, 3]), torch.tensor([[0, 2, 4], [1, 3, 0]]), torch.tensor([3, 2]))
    assert cache.lengths.tolist() == [6, 5]
    keys = cache.read(0)[0]
    assert torch.equal(keys[0, :, :6], torch.cat([prefix[0], tree[0][:, [0, 2, 4]]], 1))
    assert torch.equal(keys[1, :, :5], torch.cat([prefix[1], tree[1][:, [1, 3]]], 1))
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.lengths.tolist() == [5, 5, 6]
    assert torch.equal(cache.read(0)[0][0], keys[1]) and torch.equal(cache.read(0)[0][2], keys[0])


def test_clone_prefix_is_independent_and_bytes_are_counted():
    cache = KVCache(2, 2, 8)
    step = cache.begin(3)
    for layer in range(2):
        cache.write(layer, torch.ones(2, 4, 3, 5), torch.ones(2, 4, 3, 6), step)
    cache.commit(step)
    cache.truncate(torch.tensor([3, 2]))
    assert cache.token_bytes == 2 * 4 * (5 + 6) * 4
    assert cache.used_bytes == 5 * cache.token_bytes and cache.allocated_bytes == 16 * cache.token_bytes
    clone = cache.clone_prefix(2, copies=3)
    assert clone.batch == 6 and clone.lengths.tolist() == [2] * 6
    cache.read(0)[0].zero_()
    assert (clone.read(0)[0][:, :, :2] == 1).all() and (clone.read(0)[0][:, :, 2:] == 0).all()


def test_bad_use_is_named():
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        KVCache(1, 1, 0)
    cache = KVCache(1, 2, 4)
    with pytest.raises(ValueError, match="cannot take 5 tokens"):
        cache.begin(5)
    append(cache, torch.zeros(2, 1, 3, 2))
    with pytest.raises(ValueError, match="lengths must lie in"):
        cache.truncate(torch.tensor([4, 1]))
    with pytest.raises(ValueError, match="slots need a mask"):
        cache.begin(1, slots=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="slots must lie in 0..3"):
        cache.begin(1, slots=torch.full((2, 1), 4), mask=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="path must name appended nodes"):
        cache.gather(torch.tensor([1, 1]), torch.tensor([[2], [0]]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="length must lie in"):
        cache.clone_prefix(4)
    with pytest.raises(ValueError, match="layer 0 has not been written"):
        KVCache(1, 1, 1).read(0)


def test_a_start_overwrites_and_what_lies_behind_is_not_read():
    cache = KVCache(1, 2, 6)
    append(cache, -torch.ones(2, 1, 4, 2))
    plan = cache.begin(2, start=1)
    keys, values = cache.write(0, torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), plan)
    cache.commit(plan)
    assert plan.mask is None and not plan.causal and plan.positions.tolist() == [[1, 2]]
    assert keys[0, 0, :, 0].tolist() == [-1, 1, 1] and values[1, 0, :, 0].tolist() == [0, 1, 1]
    assert cache.lengths.tolist() == [4, 4]  # what lay behind is still there
    mask = torch.ones(2, 6, dtype=torch.bool).tril(4)
    plan = cache.begin(2, start=4, mask=mask)
    cache.write(0, torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), plan)
    cache.commit(plan)
    assert torch.equal(plan.mask[0, 0], mask) and cache.lengths.tolist() == [6, 6]
    with pytest.raises(ValueError, match="start must lie in 0..6, the length of the shortest row, got 7"):
        cache.begin(1, start=7)
    with pytest.raises(ValueError, match="cannot take 2 tokens after 5"):
        cache.begin(2, start=5)
    with pytest.raises(ValueError, match=r"must be \[.., 2, 4\], got \(2, 6\)"):
        cache.begin(2, start=2, mask=mask)

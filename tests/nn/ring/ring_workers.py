"""What the processes of a ring compute in tests/nn/test_ring_attention.py. Each function returns plain data."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

from flambeau.nn.ring import SequenceLayout, ring_attention, split_positions

NEGATIVE = -math.inf


def inputs(length, *, batch=2, heads=4, kv_heads=4, dim=8, dtype=torch.float64, keys=None, seed=0, factor=1.0):
    """Whole queries, keys, values and the gradient of the output, the same on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, length), (kv_heads, keys or length), (kv_heads, keys or length), (heads, length)]
    whole = [torch.randn(batch, h, t, dim, generator=generator, dtype=torch.float64) for h, t in shapes]
    whole[0] *= factor
    return [tensor.to(dtype) for tensor in whole]


def padded(tensor, positions, dim=2):
    """The tokens at `positions`; those behind the end are large numbers that must never matter."""
    length = tensor.shape[dim]
    filled = F.pad(tensor, (0,) * (2 * (tensor.ndim - dim - 1)) + (0, int(positions.max()) + 1 - length), value=7.0)
    return filled.index_select(dim, positions)


def whole_attention(q, k, v, visible=None, scale=None):
    """PyTorch's attention in the inputs' precision with a mask of all pairs; rows without a key are zero."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    if visible is None or visible.is_floating_point():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    empty = ~visible.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | empty, scale=scale)
    return out.masked_fill(empty, 0)


def reference(tensors, visible=None):
    """Output and gradients of whole attention."""
    *leaves, gradient = [t.clone() for t in tensors]
    leaves = [t.requires_grad_() for t in leaves]
    out = whole_attention(*leaves, visible=visible)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def errors(tensors, expected, layout, group, **options):
    """Largest differences of this rank's output and gradients from its part of the whole ones."""
    rank = group.rank()
    rows, columns = layout.queries[rank], layout.keys[rank]
    q, k, v, gradient = (padded(t, p) for t, p in zip(tensors, (rows, columns, columns, rows), strict=True))
    real = rows < tensors[0].shape[2]
    gradient[:, :, ~real] = 0
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = ring_attention(*leaves, group, positions=layout, **options)
    gradients = torch.autograd.grad(out, leaves, gradient)
    worst = 0.0
    for ours, theirs, positions in zip((out, *gradients), expected, (rows, rows, columns, columns), strict=True):
        valid = positions < theirs.shape[2]
        difference = (ours.detach()[:, :, valid] - theirs[:, :, positions[valid]]).abs().max()
        worst = max(worst, float(difference))
        if ours is not out and not valid.all():
            worst = max(worst, float(ours[:, :, ~valid].abs().max()))  # padding gets no gradient
        assert not ours.isnan().any()
    return worst


def positions_of(length):
    rows = torch.arange(length)
    return rows[:, None], rows


def parity(group):
    """Every kind of mask in both modes, in double precision: the largest error of each."""
    ranks = group.size()
    found = {}
    length = 12 * ranks
    row, column = positions_of(length)
    causal = row >= column
    lengths = torch.tensor([length - 5, 3])
    ends = torch.tensor([0, 3, ranks * 5, length])
    document = torch.bucketize(torch.arange(length), ends[1:], right=True)
    documents = document[:, None] == document
    padding = (torch.arange(length) < lengths[:, None])[:, None, None]
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) > 0.3
    bias = torch.rand(2, 4, length, length, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.5
    tensors = inputs(length)
    cases = {
        "full": ({}, None),
        "causal": ({"causal": True}, causal),
        "padding": ({"lengths": lengths}, padding.expand(2, 1, length, length)),
        "window": ({"window": 5}, (row - column).abs() < 5),
        "causal window": ({"causal": True, "window": 14}, causal & (row - column < 14)),
        "documents": ({"causal": True, "cu_seqlens": ends}, causal & documents),
        "window in documents": ({"window": 9, "cu_seqlens": ends}, ((row - column).abs() < 9) & documents),
    }
    for balance in ("none", "zigzag"):
        layout = SequenceLayout.split(length, ranks, balance)
        rank = group.rank()
        for name, (options, visible) in cases.items():
            expected = reference(tensors, visible)
            for mode in ("blockwise", "two_phase", "ulysses"):
                if mode == "ulysses" and 4 % ranks:
                    continue
                found[f"{name}, {balance}, {mode}"] = errors(tensors, expected, layout, group, mode=mode, **options)
        local = mask[:, layout.keys[rank]]
        expected = reference(tensors, mask[:, None, None].expand(2, 1, length, length) & causal)
        rows = bias[:, :, layout.queries[rank]]
        for mode in ("blockwise", "two_phase"):
            found[f"key mask, {balance}, {mode}"] = errors(
                tensors, expected, layout, group, mode=mode, key_mask=local, causal=True
            )
            found[f"boolean bias, {balance}, {mode}"] = errors(
                tensors, reference(tensors, bias > 0), layout, group, mode=mode, bias=rows > 0
            )
            found[f"bias, {balance}, {mode}"] = errors(
                tensors, reference(tensors, bias), layout, group, mode=mode, bias=rows
            )
    return found


def shapes(group):
    """Other precisions, grouped queries, cross-attention, one token a rank, lengths that cannot be divided."""
    ranks, rank = group.size(), group.rank()
    found = {}
    length = 6 * ranks
    layout = SequenceLayout.split(length, ranks)
    for mode in ("blockwise", "two_phase"):
        for name, options in (("grouped", {"kv_heads": 2}), ("one kv head", {"kv_heads": 1})):
            tensors = inputs(length, **options)
            found[f"{name}, {mode}"] = errors(tensors, reference(tensors), layout, group, mode=mode)
        tensors = inputs(length, keys=5 * ranks)
        cross = SequenceLayout(split_positions(length, ranks), split_positions(5 * ranks, ranks))
        found[f"cross, {mode}"] = errors(tensors, reference(tensors), cross, group, mode=mode)
        tensors = inputs(ranks)
        row, column = positions_of(ranks)
        one = SequenceLayout.split(ranks, ranks)
        found[f"one token, {mode}"] = errors(
            tensors, reference(tensors, row >= column), one, group, mode=mode, causal=True
        )
        for balance in ("none", "zigzag"):
            odd = 6 * ranks - 1
            tensors = inputs(odd)
            row, column = positions_of(odd)
            split = SequenceLayout.split(odd, ranks, balance)
            found[f"odd, {balance}, {mode}"] = errors(tensors, reference(tensors), split, group, mode=mode, lengths=odd)
            found[f"odd causal, {balance}, {mode}"] = errors(
                tensors, reference(tensors, row >= column), split, group, mode=mode, causal=True
            )
        for dtype in (torch.float32, torch.bfloat16):
            tensors = inputs(length, dtype=dtype)
            expected = reference([t.double() for t in tensors])
            found[f"{dtype}, {mode}"] = errors(tensors, expected, layout, group, mode=mode)
        # scores of about 1e4, so that almost all weight lies on one key
        tensors = inputs(length, factor=1e4)
        found[f"extreme, {mode}"] = errors(tensors, reference(tensors), layout, group, mode=mode) / 1e4
        # the first sequence has no key at all
        visible = torch.arange(length) < torch.tensor([0, 4])[:, None]
        tensors = inputs(length)
        expected = reference(tensors, visible[:, None, None].expand(2, 1, length, length))
        found[f"no key, {mode}"] = errors(tensors, expected, layout, group, mode=mode, lengths=torch.tensor([0, 4]))
    if 4 % ranks == 0:
        for kv_heads in (2, 1):  # fewer than ranks: they are repeated
            tensors = inputs(length, kv_heads=kv_heads)
            found[f"ulysses, {kv_heads} kv heads"] = errors(tensors, reference(tensors), layout, group, mode="ulysses")
    # positions by message instead of a layout, and without any
    tensors = inputs(length)
    expected = whole_attention(*tensors[:3])
    own = [padded(t, layout.queries[rank]) for t in tensors[:3]]
    for positions in (None, layout.queries[rank]):
        out = ring_attention(*own, group, positions=positions)
        found[f"positions={positions is not None}"] = float((out - expected[:, :, layout.queries[rank]]).abs().max())
    return found


def compositions(group):
    """Four ranks: rings of machines, and rings of Ulysses groups."""
    ranks, rank = group.size(), group.rank()
    assert ranks == 4
    length = 24
    row, column = positions_of(length)
    tensors = inputs(length)
    expected = reference(tensors, row >= column)
    found = {}
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]
    within = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    for balance in ("none", "zigzag"):
        layout = SequenceLayout.split(length, ranks, balance)
        found[f"double ring, {balance}"] = errors(tensors, expected, layout, group, causal=True, inner=2)
        rows = layout.queries[rank]
        q, k, v, gradient = (padded(t, rows) for t in tensors)
        leaves = [t.requires_grad_() for t in (q, k, v)]
        out = ring_attention(*leaves, across, positions=layout, causal=True, ulysses=within)
        results = (out, *torch.autograd.grad(out, leaves, gradient))
        pairs = zip(results, expected, strict=True)
        found[f"ring of Ulysses, {balance}"] = max(float((a - b[:, :, rows]).abs().max()) for a, b in pairs)
    return found


def traffic(group):
    """Bytes that this rank sends in forward and backward, and the formula's, for several settings."""
    from flambeau.training.parallel.traffic import Traffic

    ranks = group.size()
    found = {}
    for mode in ("blockwise", "two_phase"):
        for chunk, window in ((8, None), (16, None), (8, 3), (8, 10)):
            layout = SequenceLayout.split(chunk * ranks, ranks)
            q, k, v, _ = inputs(chunk, dtype=torch.float32)
            leaves = [t.requires_grad_() for t in (q, k, v)]
            with Traffic() as forward:
                out = ring_attention(
                    *leaves, group, positions=layout, mode=mode, window=window, causal=window is not None
                )
            with Traffic() as backward:
                out.sum().backward()
            unit = k.numel() * k.element_size()
            hops = ranks - 1 if window is None else min(ranks - 1, -(-(window - 1) // chunk))
            key = f"{mode}, {chunk}, {window}"
            home = 2 if hops else 0
            found[key] = [forward.bytes["send"] / unit, backward.bytes["send"] / unit, 2 * hops, 4 * hops + home]
            assert set(forward.bytes) <= {"send", "recv"}, dict(forward.bytes)
    return found


def memory(group):
    """Saved bytes of one attention on this rank, a real ring and one that only exists as a loop."""
    from flambeau.nn.ring import Loopback
    from flambeau.ops.saved_tensors import SavedTensors

    ranks = group.size()
    found = {}
    for mode in ("blockwise", "two_phase"):
        for where in (group, Loopback(ranks)):
            q, k, v, _ = inputs(16, dtype=torch.float32)
            leaves = [t.requires_grad_() for t in (q, k, v)]
            with SavedTensors() as saved:
                ring_attention(*leaves, where, mode=mode)
            found[f"{mode}, {type(where).__name__}"] = saved.bytes
    return found


def dropout(group):
    """The dropout masks of this rank, and how far analytic and numerical derivatives are apart."""
    ranks, rank = group.size(), group.rank()
    p, length = 0.3, 16 * ranks
    layout = SequenceLayout.split(length, ranks)
    found = {"masks": {}, "derivatives": {}}
    for mode in ("blockwise", "two_phase", "ulysses"):
        if mode == "ulysses" and 4 % ranks:
            continue
        # Equal scores and one-hot values: the output is the mask.
        q = torch.zeros(2, 4, 16, length, dtype=torch.float64)
        v = torch.eye(length, dtype=torch.float64)[layout.queries[rank]].expand(2, 4, -1, -1)
        torch.manual_seed(11)  # the same on all ranks
        out = ring_attention(q, q, v, group, mode=mode, positions=layout, dropout_p=p)
        mask = (out * length * (1 - p)).round()
        assert ((mask == 0) | (mask == 1)).all()
        found["masks"][mode] = mask

        tensors = inputs(length, seed=1)
        own = [padded(t, layout.queries[rank]) for t in tensors]
        leaves, gradient = [t.requires_grad_() for t in own[:3]], own[3]
        direction = [padded(t, layout.queries[rank]) for t in inputs(length, seed=2)[:3]]

        def loss(step, mode=mode, leaves=leaves, direction=direction, gradient=gradient):
            torch.manual_seed(12)
            moved = [leaf + step * d for leaf, d in zip(leaves, direction, strict=True)]
            return (ring_attention(*moved, group, mode=mode, positions=layout, dropout_p=p) * gradient).sum()

        gradients = torch.autograd.grad(loss(0.0), leaves)
        analytic = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        with torch.no_grad():
            numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
        both = torch.stack((analytic, numeric))
        dist.all_reduce(both, group=group)
        found["derivatives"][mode] = float((both[0] - both[1]).abs() / both[0].abs())
    return found


def memory_policies(group):
    """Gradients with recomputation and with saved tensors moved away equal those without."""
    from torch.utils.checkpoint import checkpoint

    ranks = group.size()
    tensors = inputs(8)
    results = []
    for policy in ("keep", "recompute", "offload"):
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]

        def attend(q, k, v):
            return ring_attention(q.sin(), k, v, group, dropout_p=0.1, causal=True).cos()

        torch.manual_seed(3)
        if policy == "recompute":
            out = checkpoint(attend, *leaves, use_reentrant=False)
        elif policy == "offload":
            with torch.autograd.graph.save_on_cpu():
                out = attend(*leaves)
        else:
            out = attend(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, tensors[3])])
    assert ranks > 1
    return [all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)) for other in results[1:]]


def mistakes(group):
    """Messages of the errors that need several ranks to be seen."""
    rank = group.rank()
    q = torch.randn(1, 2, 4 + rank, 8)
    found = []
    for arguments, options in (((q, q, q), {}), ((q[:, :, :4],) * 3, {"positions": torch.arange(4) if rank else None})):
        try:
            ring_attention(*arguments, group, **options)
            found.append("no error")
        except ValueError as error:
            found.append(str(error))
    three = torch.randn(1, 3, 4, 8)
    try:
        ring_attention(three, three, three, group, mode="ulysses")
        found.append("no error")
    except ValueError as error:
        found.append(str(error))
    return found


def linformer(group):
    """Linformer over the ranks against one device: largest error, and what is communicated."""
    from flambeau.nn.linformer import linformer_attention
    from flambeau.training.parallel.traffic import Traffic

    ranks, rank = group.size(), group.rank()
    found = {}
    for length in (8 * ranks, 32 * ranks, 8 * ranks - 1):
        tensors = inputs(length)
        generator = torch.Generator().manual_seed(9)
        projections = [torch.randn(5, length, generator=generator, dtype=torch.float64) / 3 for _ in range(2)]
        mask = torch.rand(2, length, generator=generator) > 0.2
        leaves = [t.clone().requires_grad_() for t in (*tensors[:3], *projections)]
        out = linformer_attention(*leaves, key_mask=mask)
        expected = [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]
        positions = split_positions(length, ranks)[rank]
        own = [padded(t, positions) for t in tensors]
        own[3][:, :, positions >= length] = 0
        leaves = [t.clone().requires_grad_() for t in (*own[:3], *projections)]
        local = padded(mask, positions, dim=1)
        with Traffic() as sent:
            out = linformer_attention(*leaves, group=group, positions=positions, key_mask=local)
            results = [out, *torch.autograd.grad(out, leaves, own[3])]
        for gradient in results[4:]:
            dist.all_reduce(gradient, group=group)
        real = positions < length
        places = positions[real]
        worst = 0.0
        for ours, theirs in zip(results[:4], expected[:4], strict=True):
            worst = max(worst, float((ours[:, :, real] - theirs[:, :, places]).abs().max()))
        for ours, theirs in zip(results[4:], expected[4:], strict=True):
            worst = max(worst, float((ours - theirs).abs().max()))
        found[str(length)] = [worst, sent.bytes["all_reduce"], sum(sent.bytes.values())]
    return found


def everything(sizes):
    """For each number of ranks, what the first so many find with the functions of these names; None on the others."""
    found = {}
    for ranks, names in sizes.items():
        group = dist.new_group(list(range(ranks)))
        inside = dist.get_rank() < ranks
        found[ranks] = {name: globals()[name](group) for name in names} if inside else None
    return found

"""Attention over a sequence that several ranks hold."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from flambeau.nn.ring.blockwise import BlockwiseRing
from flambeau.nn.ring.layout import Balance, SequenceLayout
from flambeau.nn.ring.problem import Problem
from flambeau.nn.ring.route import Route
from flambeau.nn.ring.transport import GroupTransport, Loopback, Transport, as_transport
from flambeau.nn.ring.two_phase import TwoPhaseRing
from flambeau.nn.ring.ulysses import HeadsToSequence, SequenceToHeads, shared_heads
from flambeau.nn.ring.visibility import Visibility

Group = dist.ProcessGroup | DeviceMesh | Loopback | None


def ring_attention(
    queries: Float[Tensor, "batch heads chunk head_dim"],
    keys: Float[Tensor, "batch kv_heads key_chunk head_dim"],
    values: Float[Tensor, "batch kv_heads key_chunk head_dim"],
    group: Group,
    *,
    causal: bool = False,
    positions: Int64[Tensor, " chunk"] | SequenceLayout | None = None,
    key_positions: Int64[Tensor, " key_chunk"] | None = None,
    window: int | None = None,
    lengths: int | Int64[Tensor, " batch"] | None = None,
    cu_seqlens: Int64[Tensor, " documents_plus_one"] | None = None,
    key_mask: Bool[Tensor, "batch key_chunk"] | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    mode: Literal["blockwise", "two_phase", "ulysses"] = "blockwise",
    balance: Balance = "none",
    inner: int | None = None,
    ulysses: Group = None,
    max_score_bytes: int = 2**31,
) -> Float[Tensor, "batch heads chunk head_dim"]:
    """Exact attention when each rank of `group` holds a part of the sequence, forward and backward.

    Every rank calls this with its own tokens and gets their outputs; the result equals
    ``scaled_dot_product_attention`` over the whole sequence. Scores are computed in float32 for 16-bit inputs. A query
    that may look at no key gets zeros. With a group of one rank nothing is sent.

    Args:
        queries, keys, values: this rank's tokens, as many as on every other rank. There may be fewer heads of keys and
            values (grouped queries), and another number of keys (cross-attention).
        group: process group, mesh axis (``mesh["cp"]``), or None for one rank.
        causal: a query sees keys up to its own position.
        positions: of this rank's tokens in the whole sequence, the same for all rows of the batch. By default rank r
            holds the r-th part. A `SequenceLayout`, the positions of all ranks, saves asking the others.
        key_positions: of the keys, if they are not those of the queries.
        window: a query sees keys less than `window` positions away; the ring then only goes as far as that.
        lengths: tokens that are no padding, of each sequence; keys behind are hidden.
        cu_seqlens: cumulative lengths of the documents packed into the sequence, in whole-sequence coordinates; a
            query sees its own document only.
        key_mask: True for keys that may be looked at, this rank's part.
        bias: [1 or batch, 1 or heads, chunk, length], this rank's rows over all positions: added to the scores, or, as
            booleans, True where a query may look. It gets no gradient.
        dropout_p: of the attention weights; masks differ between ranks and are the same in the backward pass.
        scale: of the scores, 1 / sqrt(head_dim) by default.
        mode: "blockwise" keeps nothing larger than a rank's tokens; "two_phase" keeps full rows of scores, as
            published; "ulysses" exchanges sequence for heads, for few ranks and many heads.
        balance: how the sequence was cut. With "zigzag" the positions have to be given.
        inner: ranks of one machine, neighbours in `group`: chunks go around in each machine before they leave it.
        ulysses: a second group: heads are divided over it, and `group` is the ring of ranks that hold the same heads.
            Parts of the sequence are counted with `ulysses` as the inner index.
        max_score_bytes: most that "two_phase" may keep.

    Raises:
        ValueError: shapes that do not fit, ranks with different ones, positions missing under zigzag, heads that
            cannot be divided, or scores larger than `max_score_bytes`.
        TypeError: a group that is none.

    Sources: Li et al. 2023, arXiv 2105.13120 (ring self-attention); Liu et al. 2023, arXiv 2310.01889 (blockwise);
    Jacobs et al. 2023, arXiv 2309.14509 (Ulysses).
    """
    _check(queries, keys, values, dropout_p, mode, balance, positions)
    if balance == "zigzag" and not causal:
        warnings.warn("balance='zigzag' only evens out causal attention; nothing is gained here", stacklevel=2)
    ring = as_transport(group)
    exchange = ring if mode == "ulysses" else as_transport(ulysses)
    if mode == "ulysses":
        ring = Loopback(1)
    if bias is not None and exchange.size > 1:
        raise ValueError("bias: rows of scores cannot be exchanged for heads; use lengths, key_mask or cu_seqlens")
    heads = queries.shape[1]
    layout = _layout(ring, exchange, queries, keys, positions, key_positions)

    if exchange.size > 1:
        assert isinstance(exchange, GroupTransport)
        pair = torch.cat((keys, values))
        pair = SequenceToHeads.apply(shared_heads(pair, heads, exchange.size), exchange.group)
        queries = SequenceToHeads.apply(queries, exchange.group)
        keys, values = pair.chunk(2)
        layout = layout.merged(exchange.size)
        if key_mask is not None:
            key_mask = torch.cat(exchange.gather(key_mask), dim=1)
    visibility = Visibility(
        causal,
        window,
        None if lengths is None else torch.as_tensor(lengths).cpu().reshape(-1),
        None if cu_seqlens is None else cu_seqlens.cpu(),
    )
    # Ranks may have equal generators; what they draw here differs by rank of the ring and of the exchange.
    seed = int(torch.randint(2**62, ())) + exchange.rank if dropout_p else 0
    if _plain(ring, visibility, layout, key_mask, bias, dropout_p, mode):
        output = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
        )
    else:
        shared = queries.shape[1] // keys.shape[1]
        problem = Problem(
            ring,
            _route(ring.size, layout, visibility, inner),
            layout,
            visibility,
            queries.shape[-1] ** -0.5 if scale is None else scale,
            dropout_p,
            seed,
            _bias(bias, layout, shared),
            None if key_mask is None else ring.gather(key_mask.bool()),
        )
        if mode == "two_phase":
            kept = math.prod(queries.shape[:3]) * keys.shape[2] * ring.size * queries.element_size()
            if kept > max_score_bytes:
                raise ValueError(
                    f"mode 'two_phase' would keep {kept} bytes of scores [batch, heads, chunk, length], more than "
                    f"max_score_bytes={max_score_bytes}; use mode 'blockwise'"
                )
        function = TwoPhaseRing if mode == "two_phase" else BlockwiseRing
        output = function.apply(queries.unflatten(1, (-1, shared)), keys, values, problem).flatten(1, 2)
    if exchange.size > 1:
        assert isinstance(exchange, GroupTransport)
        output = HeadsToSequence.apply(output, exchange.group)
    return output


def _check(
    queries: Tensor, keys: Tensor, values: Tensor, dropout_p: float, mode: str, balance: str, positions: object
) -> None:
    if queries.ndim != 4 or keys.ndim != 4 or keys.shape != values.shape:
        raise ValueError(
            "queries, keys and values must be [batch, heads, tokens, head_dim], keys and values alike; got "
            f"{list(queries.shape)}, {list(keys.shape)} and {list(values.shape)}"
        )
    if queries.shape[0] != keys.shape[0] or queries.shape[3] != keys.shape[3] or queries.shape[1] % keys.shape[1]:
        raise ValueError(
            "queries and keys must agree in batch and head_dim, and the heads of the queries be a multiple of those of "
            f"the keys; got {list(queries.shape)} and {list(keys.shape)}"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}")
    if mode not in ("blockwise", "two_phase", "ulysses"):
        raise ValueError(f"mode must be 'blockwise', 'two_phase' or 'ulysses', got {mode!r}")
    if balance not in ("none", "zigzag"):
        raise ValueError(f"balance must be 'none' or 'zigzag', got {balance!r}")
    if balance == "zigzag" and positions is None:
        raise ValueError("balance='zigzag' needs the positions of this rank's tokens; shard_sequence returns them")


def _layout(
    ring: Transport,
    exchange: Transport,
    queries: Tensor,
    keys: Tensor,
    positions: Tensor | SequenceLayout | None,
    key_positions: Tensor | None,
) -> SequenceLayout:
    """Positions on all ranks, ring index by exchange index, and the proof that all ranks have equal shapes."""
    chunk, key_chunk = queries.shape[2], keys.shape[2]
    ranks = ring.size * exchange.size
    if isinstance(positions, SequenceLayout):
        shapes = tuple(positions.queries.shape), tuple(positions.keys.shape)
        if shapes != ((ranks, chunk), (ranks, key_chunk)):
            raise ValueError(
                f"positions are of {shapes[0]} queries and {shapes[1]} keys (ranks, chunk), this rank of {ranks} has "
                f"{chunk} queries and {key_chunk} keys"
            )
        return positions
    header = torch.tensor(
        [chunk, key_chunk, len(queries), queries.shape[1], keys.shape[1], positions is None, key_positions is None]
    ).to(queries.device)
    headers = _gather(ring, exchange, header)
    names = ("tokens", "keys", "batch", "heads", "kv_heads", "positions=None", "key_positions=None")
    for name, values in zip(names, torch.stack(headers).T.tolist(), strict=True):
        if len(set(values)) > 1:
            raise ValueError(f"all ranks must have the same {name}, got {values} on ranks 0 to {ranks - 1}")
    if positions is None:
        query_table = torch.arange(ranks * chunk).view(ranks, chunk)
    else:
        query_table = _table(ring, exchange, positions, "positions", chunk, queries.device)
    if key_positions is not None:
        key_table = _table(ring, exchange, key_positions, "key_positions", key_chunk, queries.device)
    elif key_chunk == chunk:
        key_table = query_table
    else:
        key_table = torch.arange(ranks * key_chunk).view(ranks, key_chunk)
    return SequenceLayout(query_table, key_table)


def _table(
    ring: Transport, exchange: Transport, positions: Tensor, name: str, chunk: int, device: torch.device
) -> Tensor:
    if positions.shape != (chunk,) or positions.is_floating_point():
        raise ValueError(f"{name} must be {chunk} integers, got {positions.dtype} of shape {list(positions.shape)}")
    return torch.stack(_gather(ring, exchange, positions.to(device, torch.int64))).cpu()


def _gather(ring: Transport, exchange: Transport, tensor: Tensor) -> list[Tensor]:
    inner = torch.stack(exchange.gather(tensor))
    return list(torch.cat(ring.gather(inner)))


def _route(ranks: int, layout: SequenceLayout, visibility: Visibility, inner: int | None) -> Route:
    if inner is not None:
        return Route.double_ring(ranks, inner)
    if visibility.window is None:
        return Route.ring(ranks)
    needed = {
        (rank - owner) % ranks
        for rank in range(ranks)
        for owner in range(ranks)
        if visibility.any(layout.queries[rank], layout.keys[owner])
    }
    return Route.ring(ranks, needed)


def _bias(bias: Tensor | None, layout: SequenceLayout, shared: int) -> Tensor | None:
    """Heads as in the problem, and columns up to the last position, padding included."""
    if bias is None:
        return None
    length, chunk = int(layout.keys.max()) + 1, layout.queries.shape[1]
    if bias.ndim != 4 or bias.shape[2] != chunk:
        raise ValueError(f"bias must be [batch, heads, {chunk}, length], got {list(bias.shape)}")
    if bias.shape[3] < length:
        bias = F.pad(bias, (0, length - bias.shape[3]))
    return bias.unsqueeze(2) if bias.shape[1] == 1 else bias.unflatten(1, (-1, shared))


def _plain(
    ring: Transport,
    visibility: Visibility,
    layout: SequenceLayout,
    key_mask: Tensor | None,
    bias: Tensor | None,
    dropout_p: float,
    mode: str,
) -> bool:
    """Whether one rank has everything and PyTorch's kernel, which knows no positions, does the same."""
    if ring.size > 1 or dropout_p or mode == "two_phase" or key_mask is not None or bias is not None:
        return False
    if visibility.window is not None or visibility.lengths is not None or visibility.documents is not None:
        return False
    in_order = torch.arange(layout.queries.shape[1])
    return not visibility.causal or (torch.equal(layout.queries[0], in_order) and torch.equal(layout.keys[0], in_order))

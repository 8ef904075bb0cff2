"""Which tokens attend to each other when every token, or every cluster, chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flambeau.ops.gathered_attention import gathered_attention
from flambeau.ops.gathered_attention.reference import SELF


@dataclass(frozen=True)
class Members:
    """Positions in every cluster, in increasing order; group is 0, or -1 in slots that hold nothing."""

    index: Int[Tensor, "batch heads clusters window"]
    group: Int[Tensor, "batch heads clusters window"]


def top_members(
    scores: Float[Tensor, "batch heads time clusters"], window: int, mask: Bool[Tensor, "batch time"] | None
) -> Members:
    """Every cluster's `window` best positions (Roy et al. 2020, arXiv 2003.05997, section 4.1).

    A position may be in several clusters or in none; ties are broken by torch.topk.
    """
    scores = scores.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    index = scores.topk(window, dim=-1).indices.sort(dim=-1).values
    group = torch.zeros_like(index)
    if mask is not None:
        group = group.masked_fill(~mask[:, None, None].expand_as(scores).gather(3, index), -1)
    return Members(index, group)


def balanced_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_members: Members,
    key_members: Members,
    *,
    causal: bool,
    scale: float | None = None,
    mask_self: bool = False,
    bias: Tensor | None = None,
) -> Float[Tensor, "batch heads time value_dim"]:
    """Attention inside the clusters; a position gets the mean over its clusters, 0 if it is in none."""
    y = gathered_attention(
        queries, keys, values, query_members.index, key_members.index, query_members.group, key_members.group,
        causal=causal, scale=scale, mask_self=mask_self, bias=bias,
    )  # fmt: skip
    positions = query_members.index.flatten(2)
    belongs = (query_members.group.flatten(2) >= 0).to(y.dtype)
    counts = y.new_zeros(queries.shape[:3]).scatter_add(2, positions, belongs)
    total = y.new_zeros(*queries.shape[:3], y.shape[-1])
    total = total.scatter_add(2, positions[..., None].expand(-1, -1, -1, y.shape[-1]), y.flatten(2, 3))
    return total / counts.clamp(min=1)[..., None]


def bucket_attention(
    queries: Float[Tensor, "batch heads time dim"],
    keys: Float[Tensor, "batch heads time dim"],
    values: Float[Tensor, "batch heads time value_dim"],
    buckets: Int[Tensor, "batch heads time"],
    window: int,
    *,
    causal: bool,
    scale: float | None = None,
    mask_self: bool = False,
    mask: Bool[Tensor, "batch time"] | None = None,
    bias: Float[Tensor, "heads reach"] | None = None,
) -> Float[Tensor, "batch heads time value_dim"]:
    """Every token attends to itself and the last `window` earlier members of its bucket (and the next, if not causal).

    Tokens are sorted by bucket and position and cut into chunks of `window`; a chunk sees itself and the chunk before,
    and of those each token what lies within `window` members. The last condition is what makes it causal: where chunks
    begin depends on how many later tokens fall into the buckets before.

    bias: by how many members ago, 0..window; causal only.
    """
    batch, heads, time = buckets.shape
    window = min(window, time)
    padding = -time % window
    if mask is not None:
        buckets = buckets.masked_fill(~mask[:, None], torch.iinfo(buckets.dtype).max)
    groups, order = F.pad(buckets, (0, padding), value=torch.iinfo(buckets.dtype).max).sort(dim=2, stable=True)
    groups = groups.masked_fill(groups == torch.iinfo(groups.dtype).max, -1)
    rows, row_groups = (x.unflatten(2, (-1, window)) for x in (order.clamp(max=time - 1), groups))
    neighbours = (1, 0) if causal else (1, 0, -1)
    columns = torch.cat([_shifted(rows, by, 0) for by in neighbours], -1)
    column_groups = torch.cat([_shifted(row_groups, by, -1) for by in neighbours], -1)
    if bias is not None:
        slots = torch.arange(window, device=bias.device)
        ago = (slots[:, None] + window - torch.arange(2 * window, device=bias.device)).clamp(0, window)
        bias = bias[:, ago]
    y = gathered_attention(
        queries, keys, values, rows, columns, row_groups, column_groups,
        causal=causal, scale=scale, mask_self=mask_self, reach=window, bias=bias,
    )  # fmt: skip
    back = order.argsort(dim=2)[..., :time]
    return y.flatten(2, 3).gather(2, back[..., None].expand(-1, -1, -1, y.shape[-1]))


def nearest_cluster_attention(
    queries: Float[Tensor, "batch heads time dim"],
    keys: Float[Tensor, "batch heads keytime dim"],
    values: Float[Tensor, "batch heads keytime value_dim"],
    clusters: Int[Tensor, "batch heads time"],
    members: Members,
    scale: float | None = None,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch heads time value_dim"]:
    """Every query attends to the members of its own cluster: no query depends on another.

    Queries are sorted by cluster, and each cluster is padded to whole chunks as wide as a cluster has members.
    """
    batch, heads, time = clusters.shape
    count, width = members.index.shape[2], min(members.index.shape[3], time)
    sizes = F.one_hot(clusters, count).sum(2)
    chunks = -(-sizes // width)
    before = torch.cat([chunks.new_zeros(batch, heads, 1), chunks.cumsum(2)], 2)  # chunks of earlier clusters
    _, order = clusters.sort(dim=2, stable=True)
    starts = sizes.cumsum(2) - sizes
    rank = order.argsort(dim=2) - starts.gather(2, clusters)
    slot = before.gather(2, clusters) * width + rank  # [batch, heads, time]
    total = time // width + count
    positions = torch.arange(time, device=slot.device).expand_as(slot)
    group = torch.zeros_like(slot) if mask is None else -(~mask).long()[:, None].expand_as(slot)
    rows = slot.new_zeros(batch, heads, total * width).scatter(2, slot, positions).unflatten(2, (total, width))
    row_groups = slot.new_full((batch, heads, total * width), -1).scatter(2, slot, group).unflatten(2, (total, width))
    number = torch.arange(total, device=slot.device).expand(batch, heads, total).contiguous()
    owner = torch.searchsorted(before[..., 1:].contiguous(), number, right=True).clamp(max=count - 1)
    columns, column_groups = (
        x.gather(2, owner[..., None].expand(-1, -1, -1, x.shape[3])) for x in (members.index, members.group)
    )
    y = gathered_attention(queries, keys, values, rows, columns, row_groups, column_groups, scale=scale)
    return y.flatten(2, 3).gather(2, slot[..., None].expand(-1, -1, -1, y.shape[-1]))


class BucketCache:
    """The last `window` + 1 members of every bucket, in a ring per row, head and bucket: what causal bucket attention
    can still see, whatever the length of the sequence.

    Keys and values are allocated from the first token written.
    """

    def __init__(self, batch: int, heads: int, buckets: int, window: int):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.buckets, self.window, self.length = buckets, window, 0
        self.counts = torch.zeros(batch, heads, buckets, dtype=torch.long)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        buckets: Int[Tensor, "batch heads new"],
        *,
        scale: float | None = None,
        mask_self: bool = False,
        mask: Bool[Tensor, "batch new"] | None = None,
        bias: Float[Tensor, "heads reach"] | None = None,
    ) -> Float[Tensor, "batch heads new value_dim"]:
        """Append tokens and attend from each of them; a whole prompt is one pass of `bucket_attention`.

        Raises:
            ValueError: the batch is not that of the cache.
        """
        if buckets.shape[:2] != self.counts.shape[:2]:
            raise ValueError(f"cache has [batch, heads] {list(self.counts.shape[:2])}, got {list(buckets.shape[:2])}")
        mask = buckets.new_ones(buckets.shape[0], buckets.shape[2], dtype=torch.bool) if mask is None else mask
        new, empty = buckets.shape[2], self.length == 0
        self.length += new
        if empty and new > 1:
            self._fill(keys, values, buckets, mask)
            options = dict(causal=True, scale=scale, mask_self=mask_self, mask=mask)
            return bucket_attention(queries, keys, values, buckets, self.window, bias=bias, **options)
        steps = []
        for t in range(new):
            query, key, value, bucket = (x[:, :, t : t + 1] for x in (queries, keys, values, buckets))
            steps.append(self._step(query, key, value, bucket, mask[:, t], scale, mask_self, bias))
        return torch.cat(steps, 2)

    def _allocate(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            slots = self.buckets * (self.window + 1) + 1  # the last one takes what is not kept
            self.keys = keys.new_zeros(*keys.shape[:2], slots, keys.shape[3])
            self.values = values.new_zeros(*values.shape[:2], slots, values.shape[3])
            self.counts = self.counts.to(keys.device)
        return self.keys, self.values

    def _write(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        stored_keys, stored_values = self._allocate(keys, values)
        stored_keys.scatter_(2, slots[..., None].expand_as(keys), keys)
        stored_values.scatter_(2, slots[..., None].expand_as(values), values)
        return stored_keys, stored_values

    def _fill(self, keys: Tensor, values: Tensor, buckets: Tensor, mask: Tensor) -> None:
        member = F.one_hot(buckets, self.buckets) * mask[:, None, :, None]
        rank = (member.cumsum(2) - member).gather(3, buckets[..., None])[..., 0]
        self.counts = member.sum(2)
        ring = self.window + 1
        kept = mask[:, None] & (rank >= self.counts.gather(2, buckets) - ring)
        self._write(keys, values, torch.where(kept, buckets * ring + rank % ring, self.buckets * ring))

    def _step(
        self, query: Tensor, key: Tensor, value: Tensor, bucket: Tensor, mask: Tensor,
        scale: float | None, mask_self: bool, bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        self._allocate(key, value)
        ring = self.window + 1
        place = self.counts.gather(2, bucket) % ring  # [batch, heads, 1]
        keys, values = self._write(
            key, value, torch.where(mask[:, None, None], bucket * ring + place, self.buckets * ring)
        )
        self.counts.scatter_add_(2, bucket, mask[:, None, None].expand_as(bucket).long())
        slots = torch.arange(ring, device=key.device)
        index = (bucket * ring + slots)[..., None]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        logits = (query * scale) @ keys.gather(2, index.expand(-1, -1, -1, key.shape[3])).mT
        if bias is not None:
            heads = torch.arange(bias.shape[0], device=bias.device)[:, None]
            logits = logits + bias[heads, (place - slots) % ring][:, :, None]
        if mask_self:
            logits = logits.masked_fill((slots == place)[:, :, None], SELF)
        held = (slots < self.counts.gather(2, bucket)) & mask[:, None, None]
        weights = logits.masked_fill(~held[:, :, None], float("-inf")).softmax(-1).nan_to_num()
        return weights @ values.gather(2, index.expand(-1, -1, -1, value.shape[3]))


def _shifted(x: Tensor, by: int, fill: int) -> Tensor:
    """Chunk c of the result is chunk c - by; beyond the ends `fill`."""
    if by == 0:
        return x
    edge = torch.full_like(x[:, :, :1], fill)
    return torch.cat([edge, x[:, :, :-1]], 2) if by == 1 else torch.cat([x[:, :, 1:], edge], 2)

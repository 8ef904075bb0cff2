"""Sampling from a GPT whose layers are split over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flambeau.generation.sampler import Sampler
from flambeau.models.language import GPT
from flambeau.nn.kv_cache import Append, KVCache
from flambeau.training.parallel.cross_entropy import vocab_part


@torch.no_grad()
def generate_split(
    model: GPT,
    prompt: Int[Tensor, "batch prompt"],
    max_new_tokens: int,
    mesh: DeviceMesh,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch time"]:
    """Prompt and new tokens, the same on every rank; every rank has to call it.

    A rank's cache holds the keys and values of its own heads. The parts of the logits go to the mesh's first rank,
    which alone draws a token, with its `generator`, and tells the others: ranks that draw for themselves drift apart
    at the first difference between them.

    Args:
        model: split by `apply_tensor_parallel` over `mesh` with placements "megatron".
        temperature, top_k, top_p: as in `Sampler`.

    Raises:
        ValueError: more tokens than the model has positions, or an argument of `Sampler` out of range.
    """
    batch, start = prompt.shape
    if max_new_tokens < 1 or start + max_new_tokens > model.length:
        raise ValueError(
            f"max_new_tokens must lie in 1..{model.length - start} behind {start} tokens, got {max_new_tokens}"
        )
    sampler = Sampler(temperature, top_k, top_p)
    tokens, fed = prompt, prompt
    training = model.training
    model.eval()
    with _cached(model, KVCache(len(model.blocks), batch, start + max_new_tokens)) as attention:
        for _ in range(max_new_tokens):
            append = attention.begin(fed.shape[1], fed.device)
            logits = _on_first(model(fed, append.positions.expand(batch, -1))[:, -1], model.vocab, mesh)
            attention.cache.commit(append)
            fed = prompt.new_empty(batch, 1)
            if mesh.get_local_rank() == 0:
                fed = torch.multinomial(sampler.probabilities(logits[:, None])[:, 0], 1, generator=generator)
            dist.broadcast(fed, group=mesh.get_group(), group_src=0)
            tokens = torch.cat([tokens, fed], 1)
    model.train(training)
    return tokens


def _on_first(part: Float[Tensor, "batch part"], vocab: int, mesh: DeviceMesh) -> Tensor:
    """The whole logits on the mesh's first rank; on the others what they gave."""
    ranks, rank = mesh.size(), mesh.get_local_rank()
    start, end = vocab_part(vocab, rank, ranks)
    if part.shape[-1] != end - start:
        raise ValueError(f"the model's logits must be split over the mesh: got {part.shape[-1]} columns of {vocab}")
    size = -(-vocab // ranks)
    padded = F.pad(part, (0, size - part.shape[-1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(ranks)] if rank == 0 else None
    dist.gather(padded, parts, group=mesh.get_group(), group_dst=0)
    return part if parts is None else torch.cat(parts, 1)[:, :vocab]


class _Shared:
    """The cache of all layers, and where the forward under way writes."""

    def __init__(self, cache: KVCache):
        self.cache = cache
        self.append: Append | None = None

    def begin(self, new: int, device: torch.device) -> Append:
        self.append = self.cache.begin(new, device)
        return self.append


class _CachedAttention(nn.Module):
    """Takes the place of `AttentionCore`."""

    def __init__(self, shared: _Shared, layer: int):
        super().__init__()
        self.shared, self.layer = shared, layer

    def forward(
        self,
        queries: Float[Tensor, "batch heads time head_dim"],
        keys: Float[Tensor, "batch heads time head_dim"],
        values: Float[Tensor, "batch heads time head_dim"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch heads time head_dim"]:
        append = self.shared.append
        assert append is not None
        keys, values = self.shared.cache.write(self.layer, keys, values, append)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=append.mask, is_causal=append.causal)


@contextmanager
def _cached(model: GPT, cache: KVCache) -> Iterator[_Shared]:
    shared, cores = _Shared(cache), [block.attention.core for block in model.blocks]
    try:
        for layer, block in enumerate(model.blocks):
            block.attention.core = _CachedAttention(shared, layer)
        yield shared
    finally:
        for block, core in zip(model.blocks, cores, strict=True):
            block.attention.core = core

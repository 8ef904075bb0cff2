"""Next-token generation for models whose cache is of constant size and cannot be cut back."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from flambeau.generation.sampler import Sampler, draw


@torch.no_grad()
def stream(
    model: nn.Module,
    prompt: Int[Tensor, "batch prompt"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    cache: Any = None,
) -> Int[Tensor, "batch total"]:
    """Draw one token per row and forward; the prompt is one pass. All rows have prompts of equal length.

    model: called as ``model(tokens, cache=cache, keep=1)``, with ``new_cache(batch)``, for example
    `flambeau.models.language.routing_transformer.RoutingTransformerLM`; use `flambeau.generation.generate` for models
    with a `KVCache`, whose rows may differ. cache: goes on from an earlier call; `prompt` is then what follows.
    Returns the prompt and the new tokens. Raises ValueError for an empty prompt, fewer than one new token, or logits
    that leave nothing to draw.
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt must be [batch, prompt] of at least one token, got {list(prompt.shape)}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    sampler = Sampler(temperature, top_k, top_p)
    training = model.training
    model.eval()
    try:
        cache = model.new_cache(len(prompt)) if cache is None else cache
        tokens, fed = [prompt], prompt
        for step in range(max_new_tokens):
            probabilities = sampler.probabilities(model(fed, cache=cache, keep=1))[:, 0]
            if bool(probabilities.sum(-1).isnan().any()):
                raise ValueError(f"logits at generated position {step} are NaN, infinite or all masked")
            uniform = torch.rand(len(prompt), generator=generator, dtype=probabilities.dtype)
            fed = draw(probabilities, uniform.to(probabilities.device))[:, None]
            tokens.append(fed)
    finally:
        model.train(training)
    return torch.cat(tokens, 1)

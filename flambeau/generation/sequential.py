"""Plain next-token generation with a cache."""

from __future__ import annotations

import time

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flambeau.generation.noise import DRAW
from flambeau.generation.processors import Processor
from flambeau.generation.sampler import Sampler, draw
from flambeau.generation.state import CausalModel, DecodingState, Guidance
from flambeau.generation.statistics import Generation


@torch.inference_mode()
def generate(
    model: CausalModel,
    prompt: Int[Tensor, "batch prompt"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    processors: tuple[Processor, ...] = (),
    cfg_scale: float | None = None,
    uncond_ids: Int[Tensor, "batch uncond"] | None = None,
    prompt_mask: Bool[Tensor, "batch prompt"] | None = None,
    uncond_mask: Bool[Tensor, "batch uncond"] | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
    generator: torch.Generator | None = None,
    rows: Int[Tensor, " batch"] | None = None,
) -> Generation:
    """Draw one token per row and forward: the reference every other decoder is compared with.

    prompt_mask: False on left padding. cfg_scale, uncond_ids: classifier-free guidance with its own prompts.
    generator: seeds noise that is keyed by row and position. rows: row identities, so that a large batch can be drawn
    in pieces with the same result.
    Raises ValueError for bad prompts, tokens outside the vocabulary, guidance without uncond_ids, NaN logits.
    """
    sampler = Sampler(temperature, top_k, top_p, tuple(processors))
    guidance = make_guidance(cfg_scale, uncond_ids, uncond_mask)
    state = DecodingState(
        model,
        prompt,
        max_new_tokens,
        sampler,
        prompt_mask=prompt_mask,
        guidance=guidance,
        eos_id=eos_id,
        pad_id=pad_id,
        generator=generator,
        rows=rows,
    )
    began = time.perf_counter()
    while state.active.numel():
        nothing = torch.zeros_like(state.active)
        probabilities = state.propose(prompt.new_empty(state.active.numel(), 0), nothing)
        tokens = draw(probabilities, state.uniform(state.positions(1), DRAW))
        state.commit(tokens, nothing)
    state.statistics.seconds["other"] = time.perf_counter() - began - state.statistics.seconds["model"]
    return state.finish()


def make_guidance(scale: float | None, uncond_ids: Tensor | None, uncond_mask: Tensor | None) -> Guidance | None:
    """Guidance from user arguments; raises ValueError when a scale comes without the unconditional prompts."""
    if scale is None:
        return None
    if uncond_ids is None:
        raise ValueError(f"cfg_scale={scale} needs uncond_ids, the prompts of the unconditional half")
    return Guidance(scale, uncond_ids, uncond_mask)

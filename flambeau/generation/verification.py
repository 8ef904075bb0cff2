"""Acceptance of drafts against the target distribution, shared by all speculative decoders."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flambeau.generation.sampler import draw

Redraw = Literal["independent", "maximal_coupling"]


def residual(
    target: Float[Tensor, "*batch vocab"], drafted: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    """(target - drafted)+, not normalised; the target where rounding leaves nothing."""
    left = (target - drafted).clamp_(min=0)
    return torch.where(left.sum(-1, keepdim=True) > 0, left, target)


def verify_chain(
    drafts: Int[Tensor, "batch drafts"],
    drafted: Float[Tensor, "batch drafts vocab"],
    target: Float[Tensor, "batch slots vocab"],
    counts: Int[Tensor, " batch"],
    accept_noise: Float[Tensor, "batch drafts"],
    draw_noise: Float[Tensor, "batch slots"],
    redraw: Redraw = "independent",
) -> tuple[Int[Tensor, "batch slots"], Int[Tensor, " batch"]]:
    """Speculative sampling along a chain (Leviathan et al. 2023, arXiv 2211.17192) that redraws what it rejects.

    Draft i was drawn from drafted[:, i]; it is kept with probability min(1, target/drafted). The first rejected one
    is replaced from the residual. Behind it every slot is drawn anew: from its target ("independent"), or by keeping
    the draft under the same test and otherwise drawing from the residual, the maximal coupling of the two
    distributions ("maximal_coupling"). Both leave each later slot distributed as its target given the slots before
    it, which is what the next verification relies on.

    counts: real drafts per row. Returns the tokens of all slots and how many leading drafts were accepted; tokens
    up to and including that slot are samples of the target model.
    """
    width = drafts.shape[1]
    real = torch.arange(width, device=drafts.device) < counts[:, None]
    target_mass = target[:, :width].gather(2, drafts[..., None])[..., 0]
    draft_mass = drafted.gather(2, drafts[..., None])[..., 0]
    kept = (accept_noise * draft_mass < target_mass) & real
    accepted = kept.long().cumprod(1).sum(1)
    slots = torch.arange(width + 1, device=drafts.device)
    if redraw == "maximal_coupling":
        left = torch.where(real[..., None], residual(target[:, :width], drafted), target[:, :width])
        tokens = draw(torch.cat([left, target[:, width:]], 1), draw_noise)
        tokens[:, :width] = torch.where(kept, drafts, tokens[:, :width])
        return tokens, accepted
    weights = target
    if width:
        at = accepted.clamp(max=width - 1)[:, None, None].expand(-1, 1, target.shape[2])
        reached = target.gather(1, at)
        left = torch.where((accepted < counts)[:, None, None], residual(reached, drafted.gather(1, at)), reached)
        weights = target.scatter(1, at, left)
    tokens = draw(weights, draw_noise)
    tokens[:, :width] = torch.where(slots[:width] < accepted[:, None], drafts, tokens[:, :width])
    return tokens, accepted

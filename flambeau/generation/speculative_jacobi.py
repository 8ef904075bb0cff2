"""Speculative Jacobi decoding: several tokens a forward, without a draft model or training."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flambeau.generation.noise import ACCEPT, DRAW, INITIALISE, PREVIEW
from flambeau.generation.processors import Processor
from flambeau.generation.sampler import Sampler, draw
from flambeau.generation.sequential import make_guidance
from flambeau.generation.spatial_init import SpatialInit
from flambeau.generation.state import CausalModel, DecodingState
from flambeau.generation.statistics import Generation
from flambeau.generation.verification import Redraw, verify_chain

Scheme = Literal["speculative", "jacobi", "jacobi_fixed_noise"]


class SpeculativeJacobi:
    """Sample an autoregressive model in fewer forwards, from exactly its own distribution (Teng et al. 2024,
    arXiv 2410.01699).

    Each forward feeds the last committed token and up to window - 1 drafts. Drafts are verified by speculative
    sampling against the model itself; what is not accepted is drawn again from the distributions just computed and
    serves as the next drafts. Rows of a batch advance at their own pace.

    Why this is exact: given the committed tokens and the drafts before it, draft i is distributed as the stored
    distribution it was drawn from. So min(1, p/q) with the residual yields p at the first slots, and drawing every
    unaccepted slot anew in every forward restores the property for the next one. Keeping a draft that survived a test
    with its old distribution (as lock-step batching does) would break it.

    window: tokens fed per forward and row, or "auto" to time a few (see `calibrate`; the choice depends on the machine,
    the distribution of the output does not).
    init: first tokens of new slots. redraw: "maximal_coupling" keeps redrawn drafts stable and accepts more.
    scheme: "speculative"; "jacobi" is greedy fixed-point decoding, equal to argmax decoding whatever the temperature;
    "jacobi_fixed_noise" accepts a draft iff it equals the sample drawn with noise fixed per position: the output of
    `generate` with the same generator, token for token, and the greedy criterion's acceptance.
    """

    def __init__(
        self,
        window: int | Literal["auto"] = 16,
        init: SpatialInit | None = None,
        scheme: Scheme = "speculative",
        redraw: Redraw = "independent",
    ):
        if window != "auto" and (isinstance(window, str) or window < 1):
            raise ValueError(f"window must be at least 1 or 'auto', got {window!r}")
        if scheme not in ("speculative", "jacobi", "jacobi_fixed_noise"):
            raise ValueError(f"scheme must be 'speculative', 'jacobi' or 'jacobi_fixed_noise', got {scheme!r}")
        if redraw not in ("independent", "maximal_coupling"):
            raise ValueError(f"redraw must be 'independent' or 'maximal_coupling', got {redraw!r}")
        self.window, self.scheme, self.redraw = window, scheme, redraw
        self.init = SpatialInit() if init is None else init

    @torch.inference_mode()
    def generate(
        self,
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
        """Generate behind every prompt row; arguments and errors as in `generate`, and ValueError when `init` does
        not fit max_new_tokens or the vocabulary."""
        self.init.check(max_new_tokens, model.vocab)
        guidance = make_guidance(cfg_scale, uncond_ids, uncond_mask)
        calibration = None
        window = self.window
        if isinstance(window, str):
            calibration = calibrate(
                model,
                prompt,
                max_new_tokens,
                redraw=self.redraw,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                processors=processors,
                cfg_scale=cfg_scale,
                uncond_ids=uncond_ids,
                prompt_mask=prompt_mask,
                uncond_mask=uncond_mask,
            )
            window = int(min(calibration, key=lambda row: row["seconds_per_token"])["window"])
        sampler = Sampler(0.0 if self.scheme == "jacobi" else temperature, top_k, top_p, tuple(processors))
        state = DecodingState(
            model,
            prompt,
            max_new_tokens,
            sampler,
            window=window,
            prompt_mask=prompt_mask,
            guidance=guidance,
            eos_id=eos_id,
            pad_id=pad_id,
            generator=generator,
            rows=rows,
        )
        state.statistics.window, state.statistics.calibration = window, calibration
        began = time.perf_counter()
        self._run(state, window - 1, model.vocab)
        state.statistics.seconds["other"] = time.perf_counter() - began - state.statistics.seconds["model"]
        return state.finish()

    def _run(self, state: DecodingState, width: int, vocab: int) -> None:
        batch, device = state.active.numel(), state.device
        # What neighbours offer to new slots, per generated position; slots behind the end land in the margin.
        source = torch.zeros(batch, state.max_new_tokens + width + 1, dtype=torch.long, device=device)
        drafts = torch.zeros(batch, width, dtype=torch.long, device=device)
        carried = torch.zeros(batch, dtype=torch.long, device=device)  # leading drafts drawn from `drafted`
        drafted: Tensor | None = None
        while state.active.numel():
            counts = (state.remaining - 1).clamp(max=width)
            carried = torch.minimum(carried, counts)
            slots = min(width, state.most_remaining - 1)
            places = state.length[:, None] + torch.arange(slots + 1, device=device)
            starts, stops = state.length + carried, state.length + counts
            self.init.fill(source, starts, stops, slots, lambda p: state.uniform(p, INITIALISE), vocab)
            new = torch.arange(slots, device=device) >= carried[:, None]
            drafts = torch.where(new, source.gather(1, places[:, :slots]), drafts[:, :slots])
            target = state.propose(drafts, counts)

            if self.scheme == "speculative":
                delta = torch.zeros_like(target[:, :slots]).scatter_(2, drafts[..., None], 1.0)
                known = delta if drafted is None else torch.where(new[..., None], delta, drafted[:, :slots])
                tokens, accepted = verify_chain(
                    drafts,
                    known,
                    target,
                    counts,
                    state.uniform(places[:, :slots], ACCEPT),
                    state.uniform(places, DRAW),
                    self.redraw,
                )
            else:
                fixed = state.uniform(places, DRAW, step=places)
                tokens = target.argmax(-1) if self.scheme == "jacobi" else draw(target, fixed)
                agreed = (tokens[:, :slots] == drafts) & (torch.arange(slots, device=device) < counts[:, None])
                accepted = agreed.long().cumprod(1).sum(1)

            if self.init.kind.startswith("sample"):
                source.scatter_(1, places, draw(target, state.uniform(places, PREVIEW)))
            else:
                source.scatter_(1, places, tokens)
            shifted = (accepted[:, None] + 1 + torch.arange(width, device=device)).clamp(max=slots)
            stays = state.commit(tokens, accepted)
            carried = counts - accepted
            if stays.numel() < carried.numel():
                tokens, target, source = tokens[stays], target[stays], source[stays]
                shifted, carried = shifted[stays], carried[stays]
            drafts = tokens.gather(1, shifted)
            if self.scheme == "speculative" and width:
                drafted = target.gather(1, shifted[..., None].expand(-1, -1, vocab))


def calibrate(
    model: CausalModel,
    prompt: Int[Tensor, "batch prompt"],
    max_new_tokens: int,
    *,
    windows: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    tokens: int = 32,
    redraw: Redraw = "independent",
    **options: Any,
) -> list[dict[str, float]]:
    """Decode up to `tokens` tokens behind every prompt with each window and measure T(W) / E[accepted + 1].

    Returns one row a window: window, seconds_per_forward T(W), tokens_per_forward E[accepted + 1] and
    seconds_per_token, their ratio. options: sampling arguments of `SpeculativeJacobi.generate`. First tokens are
    random; the samples are thrown away.
    """
    tokens = min(tokens, max_new_tokens)
    measured: list[dict[str, float]] = []
    for window in (w for w in windows if w <= tokens):
        decoder = SpeculativeJacobi(window, redraw=redraw)
        generator = torch.Generator().manual_seed(0)
        decoder.generate(model, prompt, min(2, tokens), generator=generator, **options)  # first calls allocate
        stats = decoder.generate(model, prompt, tokens, generator=generator, **options).stats
        seconds = sum(stats.seconds.values()) / len(stats.accepted)
        measured.append(
            {
                "window": window,
                "seconds_per_forward": seconds,
                "tokens_per_forward": stats.compression,
                "seconds_per_token": seconds / stats.compression,
            }
        )
    return measured

"""Speculative Jacobi decoding: image tokens in fewer forwards, from the model's own distribution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from flambeau.data import ImageSet, derive_generator, photos
from flambeau.experiment import Claim, experiment
from flambeau.experiment.tokens import figures
from flambeau.experiment.tokens.models import TokenSource, pretrained_source, same_distribution, trained_source
from flambeau.generation import SpatialInit, SpeculativeJacobi, generate
from flambeau.generation.step_cost import in_turns, step_seconds
from flambeau.models.language import Decoder
from flambeau.symbolic import symbolize
from flambeau.training import Trainer, WarmupCosine

# fmt: off
CLAIMS = [
    Claim("compression", "tokens per forward, against cached next-token sampling of the same model",
          paper="about 2x", unit="x", at_least=1.5),
    Claim("likelihood", "samples as likely under the model: gap of the mean nll over half its 99 % bootstrap interval",
          at_most=1.0),
    Claim("codebook", "tokens used as often: total variation of the histograms over its 99 % quantile by chance",
          at_most=1.0),
    Claim("temperature", "compression at temperature 0.5, against that at 1", unit="x", at_least=1.0),
    Claim("greedy_criterion", "tokens per forward, against Jacobi decoding that accepts by equality (fixed noise)",
          unit="x", at_least=1.0),
    Claim("wall_clock", "samples per second, against cached next-token sampling; a CPU pays for every token fed",
          paper="about 1.8-2x on a GPU", unit="x"),
    Claim("gpu_step", "a forward of 16 tokens, against 1 token: 1.3B decoder, bf16, 2k context, batch 1",
          unit="x", at_most=1.25, needs="gpu"),
    Claim("gpu_wall_clock", "samples per second, one at a time on a GPU, against cached next-token sampling",
          paper="about 1.8-2x", unit="x", at_least=1.3, needs="gpu"),
    Claim("fid", "FID and CLIP score on MS-COCO, against next-token sampling", paper="within noise"),
]
PRESETS = {
    "smoke": {
        "images": 4, "training.steps": 3, "decoder.width": 32, "data.count": 90, "codes": 16, "windows": (1, 16),
        "temperatures": (0.5, 1.0),
    },
    "paper": {
        # The paper's Lumina-mGPT is a Chameleon, whose transformers class masks image tokens; Emu3 is its other model.
        "model": "hf:BAAI/Emu3-Gen-hf", "prompts": "captions_val2017.json", "new_tokens": 8190,
        "grid": (90, 91), "images": 4, "cfg_scale": 3.0, "top_k": 2048, "temperatures": (),
    },
}
# fmt: on


@experiment("sjd", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: ImageSet | str = symbolize(photos)(crop=32, count=3600, gray=True),
    size: int = 32,
    codes: int = 64,
    patch: int = 4,
    decoder: Callable[..., Decoder] = symbolize(Decoder).partial(width=96, depth=3, heads=4),
    batch_size: int = 64,
    training: Trainer = symbolize(Trainer)(
        steps=400, optimizer=symbolize(torch.optim.AdamW).partial(lr=3e-3), schedule=symbolize(WarmupCosine)(), clip=1.0
    ),
    model: str | None = None,
    prompts: str | None = None,
    new_tokens: int = 64,
    grid: tuple[int, int] | None = None,
    images: int = 64,
    window: int = 16,
    windows: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    temperature: float = 1.0,
    temperatures: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25),
    top_k: int | None = None,
    cfg_scale: float | None = None,
) -> None:
    """Sample images from a token model in fewer forwards, with exactly the distribution of next-token sampling.

    data: images to learn from, or a folder of them.
    size: side the images are resized to, in pixels.
    codes: vocabulary of the k-means tokenizer.
    patch: side of its patches, in pixels.
    decoder: the token model that is trained.
    batch_size: images a step.
    training: of the token model.
    model: "hf:FOLDER" or "hf:NAME", a transformers causal LM to sample instead of training one.
    prompts: JSON file for it: token-id lists, texts, or COCO captions (default: its start token).
    new_tokens: tokens it generates behind each prompt.
    grid: (height, width) in which they are laid out, for the acceptance map.
    images: samples drawn.
    window: tokens per forward.
    windows: those compared in the figure.
    temperature: of the samples.
    temperatures: those compared in the figure.
    top_k: keep the likeliest tokens only.
    cfg_scale: guidance against the last prompt token alone; needs `model`.
    """
    if model is not None:
        source = pretrained_source(run, model, prompts, new_tokens, grid, images)
    elif cfg_scale is not None:
        raise ValueError("cfg_scale needs model=hf:...; the model trained here has no condition to drop")
    else:
        source = trained_source(run, data, size, codes, patch, decoder, batch_size, training, images)

    def sample(decode: Callable[..., Any], stream: str, at: float = temperature, rows: int = images) -> Any:
        prompt = source.prompt[:rows]
        return decode(
            source.model,
            prompt,
            source.tokens,
            temperature=at,
            top_k=top_k,
            cfg_scale=cfg_scale,
            uncond_ids=prompt[:, -1:],
            prompt_mask=None if source.mask is None else source.mask[:rows],
            generator=derive_generator(run.seed, stream),
        )

    speculative = SpeculativeJacobi(window).generate
    plain, ours = sample(generate, "plain"), sample(speculative, "ours")
    jacobi = sample(SpeculativeJacobi(window, scheme="jacobi_fixed_noise").generate, "plain").stats.compression
    rate = ours.stats.compression
    run.measure("compression", ours=rate, baseline=plain.stats.compression, value=rate / plain.stats.compression)
    run.measure("greedy_criterion", ours=rate, baseline=jacobi, value=rate / jacobi)
    for name, (gap, chance) in same_distribution(run, source, ours.tokens, plain.tokens).items():
        if images < 2:
            run.unmeasured(name, why="needs at least two samples")
        else:
            run.measure(name, ours=gap, baseline=chance, value=abs(gap) / chance)

    measured = {at: [sample(SpeculativeJacobi(w).generate, "ours", at) for w in windows] for at in temperatures}
    curves = {at: [out.stats.compression for out in outs] for at, outs in measured.items()}
    if 0.5 in curves and 1.0 in curves and window in windows:
        cool, warm = (curves[at][windows.index(window)] for at in (0.5, 1.0))
        run.measure("temperature", ours=cool, baseline=warm, value=cool / warm)
    else:
        run.unmeasured("temperature", why="needs temperatures 0.5 and 1.0, and the window among windows")
    timing(run, source, sample, speculative, windows)
    run.unmeasured("fid", why="needs the MS-COCO images, and Inception and CLIP weights")

    rows = [{"decoder": "random first tokens", "tokens_per_forward": rate}]
    if source.grid is not None and source.grid[0] * source.grid[1] == source.tokens:
        for kind in ("repeat_h", "repeat_v", "sample_h", "sample_v"):
            out = sample(SpeculativeJacobi(window, SpatialInit(kind, source.grid)).generate, "ours")
            rows.append({"decoder": f"{kind} first tokens", "tokens_per_forward": out.stats.compression})
    coupled = sample(SpeculativeJacobi(window, redraw="maximal_coupling").generate, "ours").stats.compression
    rows.append({"decoder": "maximally coupled redraws", "tokens_per_forward": coupled})
    rows.append({"decoder": "Jacobi, accepting by equality", "tokens_per_forward": jacobi})
    run.table("decoders", rows)

    start = source.prompt.shape[1]
    if source.decode is not None:
        kinds = {"next token": (plain, source.tokens), "speculative Jacobi": (ours, round(source.tokens / rate))}
        shown = {f"{kind}: {n} forwards": source.decode(out.tokens[:, start:]) for kind, (out, n) in kinds.items()}
        run.figure("samples", figures.image_rows_figure(shown))
    if source.grid is not None:
        run.figure(
            "acceptance", figures.acceptance_figure(ours.stats.acceptance_map(source.grid), ours.stats.histogram())
        )
    if curves:
        run.figure("compression", figures.compression_figure(windows, curves, window))


def timing(
    run: Any, source: TokenSource, sample: Callable[..., Any], speculative: Any, windows: tuple[int, ...]
) -> None:
    """Wall clock, in turns: whole generations, and what W tokens a forward cost."""
    runs = {"plain": partial(sample, generate, "plain"), "ours": partial(sample, speculative, "ours")}
    seconds = in_turns(runs, run.device)
    rates = {name: len(source.prompt) / spent for name, spent in seconds.items()}
    run.measure("wall_clock", ours=rates["ours"], baseline=rates["plain"], value=rates["ours"] / rates["plain"])
    fed = tuple(w for w in windows if w < source.tokens)
    cost = step_seconds(
        source.model, fed, batch=len(source.prompt), context=source.tokens - max(fed), device=run.device
    )
    run.table("cost of a forward", [{"window": w, "times the cost of one token": cost[w] / cost[fed[0]]} for w in fed])
    if run.device.type != "cuda":
        run.unmeasured("gpu_step", why="no GPU")
        run.unmeasured("gpu_wall_clock", why="no GPU")
        return
    runs = {
        name: partial(sample, decode, name, rows=1) for name, decode in (("plain", generate), ("ours", speculative))
    }
    seconds = in_turns(runs, run.device)
    ratio = seconds["plain"] / seconds["ours"]
    run.measure("gpu_wall_clock", ours=1 / seconds["ours"], baseline=1 / seconds["plain"], value=ratio)
    with run.device:
        large = Decoder(32000, 2080, width=2048, depth=24, heads=16).to(torch.bfloat16).eval()
    cost = step_seconds(large, (1, 16), context=2048, device=run.device)
    run.measure("gpu_step", ours=cost[16], baseline=cost[1], value=cost[16] / cost[1])

"""Token models that experiments on decoding sample from: trained on images here, or loaded with their prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flambeau.data import Batches, ImageSet, derive_generator, image_folder
from flambeau.experiment.run import Run
from flambeau.generation import huggingface
from flambeau.generation.comparison import mean_gap, sequence_nll, usage_gap
from flambeau.generation.state import CausalModel
from flambeau.models.language import Decoder
from flambeau.nn.patch_tokenizer import PatchTokenizer
from flambeau.objectives.next_token import next_token_loss
from flambeau.training import Trainer


@dataclass(frozen=True)
class TokenSource:
    """model, prompts and their mask, tokens generated per sample, the grid they fill, and how they become images."""

    model: CausalModel
    prompt: Int[Tensor, "batch prompt"]
    mask: Bool[Tensor, "batch prompt"] | None
    tokens: int
    grid: tuple[int, int] | None = None
    decode: Callable[[Tensor], Tensor] | None = None


def trained_source(
    run: Run,
    data: ImageSet | str,
    size: int,
    codes: int,
    patch: int,
    decoder: Callable[..., Decoder],
    batch_size: int,
    training: Trainer,
    samples: int,
) -> TokenSource:
    """A k-means patch tokenizer and a raster-order token model, both learnt from images of `size` pixels a side.

    data: images, or a folder of them. decoder: a `Decoder` that waits for vocabulary, length, grid and conditions.
    The prompt is a start token.
    """
    pictures = (image_folder(data, size) if isinstance(data, str) else data.resize(size)).images
    tokenizer = PatchTokenizer(codes, patch, pictures.shape[1])
    tokenizer.fit(pictures, derive_generator(run.seed, "tokenizer"))
    grid = (size // patch, size // patch)
    tokens = torch.cat([torch.full((len(pictures), 1), codes), tokenizer.encode(pictures)], 1)
    torch.manual_seed(run.seed)
    model = decoder(codes, grid[0] * grid[1], grid=grid, conditions=1).to(run.device)
    folder = run.folder / "train" / "decoder"
    fit = training.fit(
        model, next_token_loss, Batches(tokens, batch_size), folder=folder, progress=run.progress, seed=run.seed
    )
    run.note(f"The token model reaches {fit.history[-1]['loss']:.2f} nats per token in training.")
    prompt = torch.full((samples, 1), codes, device=run.device)
    return TokenSource(model, prompt, None, grid[0] * grid[1], grid, lambda t: tokenizer.decode(t.cpu(), grid))


def pretrained_source(
    run: Run, model: str, prompts: str | None, tokens: int, grid: tuple[int, int] | None, samples: int
) -> TokenSource:
    """A transformers causal LM, "hf:FOLDER" or "hf:NAME", with prompts of a JSON file (default: its start token).

    Prompts are repeated, or cut off, to `samples`. Raises ValueError for another kind of model.
    """
    kind, _, place = model.partition(":")
    if kind != "hf" or not place:
        raise ValueError(f"model must be hf:FOLDER or hf:NAME, got {model!r}")
    loaded = huggingface.load(place, device=run.device)
    if prompts is None:
        start = loaded.model.config.bos_token_id
        if start is None:
            raise ValueError(f"{place} names no start token; give prompts=FILE")
        texts = [[start]]
    else:
        texts = huggingface.read_prompts(prompts, place)
    prompt, mask = huggingface.pad_left([texts[sample % len(texts)] for sample in range(samples)])
    return TokenSource(loaded, prompt.to(run.device), mask.to(run.device), tokens, grid)


def same_distribution(run: Run, source: TokenSource, ours: Tensor, plain: Tensor) -> dict[str, tuple[float, float]]:
    """Gaps between our samples and the baseline's, each with the size it reaches by chance."""
    generator = derive_generator(run.seed, "resampling")
    nll = [sequence_nll(source.model, tokens, source.tokens, mask=source.mask) for tokens in (ours, plain)]
    start = source.prompt.shape[1]
    usage = usage_gap(ours[:, start:].cpu(), plain[:, start:].cpu(), source.model.vocab, generator)
    return {"likelihood": mean_gap(nll[0], nll[1], generator), "codebook": usage}

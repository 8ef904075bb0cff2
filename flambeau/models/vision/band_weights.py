"""Weights learnt on other bands: the first convolution rearranged by band name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn


def adapt_first_conv(
    weight: Float[Tensor, "out source height width"], source: Sequence[str], target: Sequence[str]
) -> Float[Tensor, "out target height width"]:
    """A convolution's weight for other input bands.

    A band that both have keeps its weights; one that is new gets the mean over the source's bands. Then all are scaled
    so that an input of equal bands gives the same output as before.

    Raises:
        ValueError: names that do not fit the weight, or no name in common.
    """
    if len(source) != weight.shape[1] or len(set(source)) != len(source):
        raise ValueError(f"source must be {weight.shape[1]} different bands, got {list(source)}")
    shared = [band for band in target if band in source]
    if not shared:
        raise ValueError(f"target {list(target)} has no band in common with source {list(source)}")
    mean = weight.mean(1)
    columns = [weight[:, list(source).index(band)] if band in source else mean for band in target]
    adapted = torch.stack(columns, 1)
    before, after = weight.sum(1), adapted.sum(1)
    # A signed scale per filter would blow up where its bands cancel; one factor for all keeps their proportions.
    factor = (before * after).sum() / after.square().sum().clamp_min(1e-12)
    return adapted * factor.clamp(0.1, 10.0)


def load_band_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, source: Sequence[str], target: Sequence[str]
) -> list[str]:
    """Load weights learnt on the bands `source` into a model for the bands `target`.

    The first convolution is rearranged by :func:`adapt_first_conv`. A head of another size keeps its own values.

    Args:
        weights: a safetensors file, a pickled state dict (loaded with ``weights_only=True``), or a state dict.

    Returns:
        The names of the parameters that were not loaded: missing, or of another shape.

    Raises:
        ValueError: the model begins with no convolution, the file has none for it, or nothing fits.
    """
    state = dict(weights) if isinstance(weights, Mapping) else _read(Path(weights))
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise ValueError(f"model {type(model).__name__} has no convolution")
    first = f"{found[0][0]}.weight"
    if first not in state:
        raise ValueError(f"weights have no {first!r}; they begin with {sorted(state)[:3]}")
    state[first] = adapt_first_conv(state[first], source, target)
    own = model.state_dict()
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if first not in fits:
        raise ValueError(f"{first} is {tuple(own[first].shape)} in the model, {tuple(state[first].shape)} in weights")
    model.load_state_dict(fits, strict=False)
    return [name for name in own if name not in fits]


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)

"""Autoformer weights saved by the authors' code (github.com/thuml/Autoformer) into this library's network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flambeau.models.series.autoformer import Autoformer

PARTS = {
    "enc_embedding.value_embedding.tokenConv": "encoder_embedding.values",
    "enc_embedding.temporal_embedding.embed": "encoder_embedding.marks",
    "dec_embedding.value_embedding.tokenConv": "decoder_embedding.values",
    "dec_embedding.temporal_embedding.embed": "decoder_embedding.marks",
    "encoder.norm.layernorm": "encoder_norm.norm",
    "decoder.norm.layernorm": "decoder_norm.norm",
    "decoder.projection": "projection",
}
LAYER_PARTS = {"conv1": "feed_forward.0", "conv2": "feed_forward.3", "projection": "trend"}
MIXINGS = {"attention": "mixing", "self_attention": "mixing", "cross_attention": "cross"}


def import_thuml(
    weights: Mapping[str, Tensor] | str | Path,
    *,
    seq_len: int = 96,
    label_len: int = 48,
    pred_len: int = 96,
    heads: int = 8,
    kernel: int = 25,
    factor: float = 3,
    dropout: float = 0.05,
) -> Autoformer:
    """Build an :class:`Autoformer` that computes what the authors' model with these weights computes.

    Widths and depths are read off the weights; the arguments are what the weights do not tell. The model must have been
    trained with time features (``--embed timeF``, the default of the authors' scripts).

    Args:
        weights: a state dict, a ``.safetensors`` file, or a ``checkpoint.pth``, which is read with ``weights_only``.

    Raises:
        ValueError: a name that is missing, unknown or of the wrong shape.
    """
    state = dict(weights) if isinstance(weights, Mapping) else _read(Path(weights))
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if "position_embedding" not in name and "moving_avg" not in name:
            renamed[_rename(name)] = tensor.squeeze(-1) if ".conv1." in name or ".conv2." in name else tensor
    needed = (
        "encoder_embedding.values.weight",
        "encoder_embedding.marks.weight",
        "encoder.0.feed_forward.0.weight",
        "projection.weight",
    )
    missing = [name for name in needed if name not in renamed]
    if missing:
        raise ValueError(
            f"weights are not an Autoformer of thuml/Autoformer with time features: no {', '.join(missing)}"
        )
    dim, c_in, _ = renamed["encoder_embedding.values.weight"].shape
    model = Autoformer(
        c_in,
        renamed["projection.weight"].shape[0],
        seq_len=seq_len,
        label_len=label_len,
        pred_len=pred_len,
        dim=dim,
        heads=heads,
        enc_layers=len({name.split(".")[1] for name in renamed if name.startswith("encoder.")}),
        dec_layers=len({name.split(".")[1] for name in renamed if name.startswith("decoder.")}),
        ff=renamed["encoder.0.feed_forward.0.weight"].shape[0],
        kernel=kernel,
        factor=factor,
        marks=renamed["encoder_embedding.marks.weight"].shape[1],
        dropout=dropout,
    )
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the network that they describe: {error}") from None
    return model


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _rename(name: str) -> str:
    module, parameter = name.rsplit(".", 1)
    if module in PARTS:
        return f"{PARTS[module]}.{parameter}"
    match module.split("."):
        case [stack, "attn_layers" | "layers", layer, part] if part in LAYER_PARTS:
            return f"{stack}.{layer}.{LAYER_PARTS[part]}.{parameter}"
        case [stack, "attn_layers" | "layers", layer, part, projection] if part in MIXINGS:
            return f"{stack}.{layer}.{MIXINGS[part]}.{projection.removesuffix('_projection')}.{parameter}"
    raise ValueError(f"weights: unknown name {name!r}; expected those of thuml/Autoformer")

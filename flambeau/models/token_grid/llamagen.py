"""LlamaGen's released weights as the beginning of a NAR model."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.models.token_grid.nar import NAR

MAX_BYTES = 2**34


def nar_from_llamagen(path: str | Path, heads: int, grid: tuple[int, int] = (16, 16), extra_blocks: int = 1) -> NAR:
    """A class-conditional NAR whose trunk and last-axis head are a LlamaGen model (Sun et al. 2024, arXiv 2406.06525).

    Depth, width, vocabulary and classes are read from the weights. The other heads begin as copies of what is there,
    their blocks as the trunk's last ones, ready to be fine-tuned. The rotary angles' pairs, interleaved there, are
    brought to this library's order.

    path: a ``.pt`` file, read with ``weights_only=True``, or ``.safetensors``. heads: attention heads, not in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a class-conditional LlamaGen checkpoint, or sizes that do not fit.
    """
    state = _read(Path(path))
    match = {name: re.fullmatch(r"layers\.(\d+)\..*", name) for name in state}
    numbers = [int(found[1]) for found in match.values() if found]
    needed = {"tok_embeddings.weight", "cls_embedding.embedding_table.weight", "norm.weight", "output.weight"}
    if not numbers or needed - state.keys():
        raise ValueError(
            f"{path} is no class-conditional LlamaGen checkpoint: it lacks {sorted(needed - state.keys())}"
        )
    depth, (vocab, width) = max(numbers) + 1, state["tok_embeddings.weight"].shape
    hidden = state["layers.0.feed_forward.w1.weight"].shape[0]
    classes = state["cls_embedding.embedding_table.weight"].shape[0] - 1
    model = NAR(
        vocab, grid, width, depth, heads,
        classes=classes, extra_blocks=extra_blocks, hidden=hidden, mute_condition=True,
    )  # fmt: skip
    new = {
        "embedding.weight": state["tok_embeddings.weight"],
        "condition.embedding.weight": state["cls_embedding.embedding_table.weight"],
        "heads.0.norm.weight": state["norm.weight"],
        "heads.0.output.weight": state["output.weight"],
    }
    for layer in range(depth):
        new |= {f"blocks.{layer}.{name}": value for name, value in _block(state, layer, heads).items()}
    problems = model.load_state_dict(new, strict=False)
    missing = [name for name in problems.missing_keys if not name.startswith("heads.1.")]
    if missing or problems.unexpected_keys:
        raise ValueError(f"{path} does not fit: missing {missing[:5]}, unknown {problems.unexpected_keys[:5]}")
    below = model.heads[1]
    below.norm.load_state_dict(model.heads[0].norm.state_dict())
    below.output.load_state_dict(model.heads[0].output.state_dict())
    for number, block in enumerate(below.blocks):
        block.load_state_dict(copy.deepcopy(model.blocks[depth - extra_blocks + number].state_dict()))
    return model


def _block(state: dict[str, Tensor], layer: int, heads: int) -> dict[str, Tensor]:
    old = {
        name.removeprefix(f"layers.{layer}."): value
        for name, value in state.items()
        if name.startswith(f"layers.{layer}.")
    }
    try:
        queries, keys, values = old["attention.wqkv.weight"].chunk(3)
        return {
            "attention_norm.weight": old["attention_norm.weight"],
            "attention.qkv.weight": torch.cat([halves(queries, heads), halves(keys, heads), values]),
            "attention.out.weight": old["attention.wo.weight"],
            "mlp_norm.weight": old["ffn_norm.weight"],
            "mlp.gate_and_up.weight": torch.cat([old["feed_forward.w1.weight"], old["feed_forward.w3.weight"]]),
            "mlp.out.weight": old["feed_forward.w2.weight"],
        }
    except KeyError as error:
        raise ValueError(f"layer {layer} of the checkpoint lacks {error}") from None


def halves(weight: Float[Tensor, "out in"], heads: int) -> Float[Tensor, "out in"]:
    """Rows of each head from interleaved pairs (0, 1), (2, 3), ... to halves: pairs (0, n/2), (1, n/2 + 1), ..."""
    if weight.shape[0] % (2 * heads):
        raise ValueError(f"heads: {weight.shape[0]} rows cannot be divided into {heads} heads of even size")
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} exceeds {MAX_BYTES >> 30} GiB")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives fail in various ways, hostile ones are refused
        raise ValueError(f"{path} cannot be read as weights: {type(error).__name__}: {error}") from None
    for name in ("model", "module", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no table of weights")
    # Buffers that its model recomputes.
    return {name: value for name, value in state.items() if name not in ("freqs_cis", "causal_mask")}

"""Read the checkpoints of the authors' first program."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flambeau.models.vision.vit import ViT
from flambeau.training.self_supervised.sit import SiT

MAX_BYTES = 4 * 2**30
NAMES = (
    ("rec_head.convTrans.", "rec_head.pixels."),
    ("contr_head.mlp.", "student.con_head."),
    ("rot_head.mlp.", "rot_head."),
    ("backbone.", "student.backbone."),
)


def sit_from_v1_checkpoint(path: str | Path, image_size: tuple[int, int] | None = None) -> SiT:
    """Version 1 of SiT with the weights of a checkpoint of Sara-Ahmed/SiT (commit 23723e4).

    Only tensors are read (``weights_only=True``). Sizes follow from them, with heads of 64 channels as in all networks
    of that program. image_size: of the position grid, in pixels; None for a square one.

    Raises:
        ValueError: a file above 4 GiB, without the model's weights, or with weights that do not fit.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, at most {MAX_BYTES} are read")
    with torch.serialization.safe_globals([argparse.Namespace]):  # the program's arguments, plain values
        saved = torch.load(path, map_location="cpu", weights_only=True)
    state: Any = saved.get("SiT_model", saved) if isinstance(saved, Mapping) else {}
    state = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    needed = ("backbone.cls_token1", "backbone.cls_token2", "backbone.pos_embed", "backbone.patch_embed.proj.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise ValueError(f"{path} is no checkpoint of the first SiT: it lacks {', '.join(missing)}")
    positions, kernel = state["backbone.pos_embed"], state["backbone.patch_embed.proj.weight"]
    width, channels, *patch = kernel.shape
    if image_size is None:
        side = math.isqrt(positions.shape[1] - 2)
        if side * side != positions.shape[1] - 2:
            raise ValueError(f"image_size is needed: {positions.shape[1] - 2} positions are not a square")
        image_size = (side * patch[0], side * patch[1])
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks."))
    vit = ViT(image_size, (patch[0], patch[1]), width, depth, width // 64, in_channels=channels, class_tokens=2)
    tasks = [task for task, head in (("rec", "rec"), ("con", "contr"), ("rot", "rot")) if f"{head}_w" in state]
    uncertainties = [state.pop(f"{head}_w") for head in ("rec", "contr", "rot") if f"{head}_w" in state]
    if not uncertainties:
        raise ValueError(f"{path} holds a network without uncertainty weights, which is not read")
    out = state["contr_head.mlp.4.weight"].shape[0] if "con" in tasks else 256
    model = SiT(vit, 1, tasks, hidden=2048, out=out)
    renamed = {"weights.s": torch.cat(uncertainties)}
    renamed["student.backbone.cls_token"] = torch.cat(
        [state.pop("backbone.cls_token1"), state.pop("backbone.cls_token2")], 1
    )
    for name, value in state.items():
        old, new = next((pair for pair in NAMES if name.startswith(pair[0])), ("", ""))
        renamed[new + name.removeprefix(old)] = value
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {error}") from None
    return model

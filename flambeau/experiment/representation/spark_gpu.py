"""What masking costs on a GPU: a step of SparK beside one of the dense network."""

from __future__ import annotations

from typing import Any

import torch

from flambeau.models.vision import resnet50
from flambeau.ops.bench import interleaved
from flambeau.training.self_supervised import SparK


def step_ratio(device: torch.device, batch_size: int = 64) -> tuple[float, float]:
    """Seconds of forward and backward of SparK and of the dense ResNet-50, 224 x 224, bf16, from one interleaved run.

    The decoder is not counted: both are the encoder alone, SparK's with 60 % of the cells hidden.
    """
    images = torch.rand(batch_size, 3, 224, 224, device=device)
    dense = resnet50().to(device)
    sparse = SparK(resnet50(), (224, 224)).to(device)
    mask = torch.rand(batch_size, 7 * 7, device=device).argsort(1).lt(sparse.keep((224, 224))).view(-1, 7, 7)

    def dense_step() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            last = dense.stages(images)["layer4"]
        last.float().mean().backward()

    def sparse_step() -> Any:
        with torch.autocast(device.type, torch.bfloat16), sparse.context(mask):
            last = sparse.backbone.stages(images)["layer4"]
        last.float().mean().backward()

    taken = interleaved({"sparse": sparse_step, "dense": dense_step}, repeats=10, synchronize=torch.cuda.synchronize)
    return taken["sparse"].wall, taken["dense"].wall

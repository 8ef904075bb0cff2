"""Knowledge review: the student's deep features are fused into its shallower ones before both are compared.

Source: Chen, Liu, Zhao & Jia 2021, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.training.distillation.auxiliary.container import record, recorded
from flambeau.training.distillation.path_loss import parse_path


class AttentionBasedFusion(nn.Module):
    """Adds what comes from deeper stages, each position weighing both by a sigmoid of their concatenation.

    Args:
        in_channels: of the student's feature.
        out_channels: of the teacher's feature at this stage.
        middle_channels: in which stages are fused; the same for all of them.
        fuse: False for the deepest stage, which has nothing to fuse.

    x: [batch, in_channels, h, w] and the residual of the deeper stage, [batch, middle_channels, h', w'], which is
    enlarged to x's size -> (output [batch, out_channels, h, w], residual [batch, middle_channels, h, w]).

    Raises:
        ValueError: a residual that is missing where there is one to fuse, or given where there is none.
    """

    def __init__(self, in_channels: int, out_channels: int, middle_channels: int, *, fuse: bool = True):
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, middle_channels, 1, bias=False), nn.BatchNorm2d(middle_channels)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(middle_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.attention = nn.Conv2d(2 * middle_channels, 2, 1) if fuse else None
        for layer in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], residual: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch outputs height width"], Float[Tensor, "batch middle height width"]]:
        if (residual is None) != (self.attention is None):
            expected = "none, since it has fuse=False" if self.attention is None else "a deeper stage's residual"
            raise ValueError(f"residual: got {'none' if residual is None else 'one'}, expected {expected}")
        x = self.reduce(x)
        if residual is not None and self.attention is not None:
            residual = F.interpolate(residual, x.shape[-2:], mode="nearest")
            weights = self.attention(torch.cat([x, residual], 1)).sigmoid()
            x = x * weights[:, :1] + residual * weights[:, 1:]
        return self.expand(x), x


class KnowledgeReview(nn.Module):
    """A chain of fusions from the deepest stage of the student to the shallowest.

    Args:
        fusions: one for each stage, the deepest first; only that one has ``fuse=False``.
        inputs: the student's tensors in the same order, ``"path:input"`` or ``"path:output"``.

    `secondary_forward` records the i-th output as ``"fusions.i"``, to be compared with the teacher's stage by
    `HierarchicalContextLoss`.

    Raises:
        ValueError: other than one input for each fusion, or a malformed one; a tensor that was not recorded.
    """

    def __init__(self, fusions: Sequence[AttentionBasedFusion], inputs: Sequence[str]):
        super().__init__()
        if len(fusions) != len(inputs):
            raise ValueError(f"inputs: got {len(inputs)}, expected one for each of the {len(fusions)} fusions")
        self.fusions = nn.ModuleList(fusions)
        self.inputs = [parse_path(source) for source in inputs]

    def secondary_forward(self, io_dict: dict[str, dict[str, Any]]) -> None:
        """Run the chain and record it."""
        residual = None
        for i, (fusion, source) in enumerate(zip(self.fusions, self.inputs)):
            taken = recorded(io_dict, *source)
            output, residual = fusion(taken, residual)
            record(io_dict, f"fusions.{i}", taken, output)

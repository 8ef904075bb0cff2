"""Heads on a feature vector; a feature map is flattened first unless its head says otherwise."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CCKDHead(nn.Sequential):
    """Linear map to the space in which samples are related (Peng et al. 2019, arXiv 1904.01802): [batch, out]."""

    def __init__(self, in_features: int, out_features: int = 128):
        super().__init__(nn.Flatten(), nn.Linear(in_features, out_features))


class CRDHead(nn.Sequential):
    """Linear map to the unit sphere (Tian et al. 2020, arXiv 1910.10699): [batch, out], vectors of length 1."""

    def __init__(self, in_features: int, out_features: int = 128):
        super().__init__(nn.Flatten(), nn.Linear(in_features, out_features))

    def forward(self, x: Float[Tensor, "batch *size"]) -> Float[Tensor, "batch out"]:
        return F.normalize(super().forward(x), dim=1)


class SSHead(nn.Sequential):
    """Two linear maps with a ReLU between them: the self-supervision module (Xu et al. 2020, arXiv 2006.07114)."""

    def __init__(self, features: int):
        super().__init__(nn.Flatten(), nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))


class VarianceBranch(nn.Sequential):
    """Log-variance of each entry of a feature: a linear map and BatchNorm (Zhang et al. 2020, arXiv 2008.01458)."""

    def __init__(self, features: int):
        super().__init__(nn.Flatten(), nn.Linear(features, features), nn.BatchNorm1d(features))


class SRDProjector(nn.Module):
    """Mean over positions, linear map, BatchNorm without scale and shift (Miles & Mikolajczyk 2024, arXiv 2303.11098).

    in_features: channels of the feature. out_features: those of the teacher; without it there is no linear map, as on
    the teacher's own side. x: [batch, channels, ...] -> [batch, out].
    """

    def __init__(self, in_features: int, out_features: int | None = None):
        super().__init__()
        self.linear = nn.Identity() if out_features is None else nn.Linear(in_features, out_features)
        self.norm = nn.BatchNorm1d(out_features or in_features, eps=1e-4, affine=False)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch out"]:
        return self.norm(self.linear(x.flatten(2).mean(2) if x.ndim > 2 else x))

"""A multilayer-perceptron encoder and its mirrored decoder, for rows of a table."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class MLPEncoder(nn.Module):
    """Linear layers with ReLU between them and a linear code.

    Args:
        num_features: length of a row.
        hidden: widths of the hidden layers.
        latent_dim: length of the code.
    """

    def __init__(self, num_features: int, hidden: Sequence[int] = (16,), latent_dim: int = 8):
        super().__init__()
        self.num_features, self.latent_dim = num_features, latent_dim
        self.layers = _linears([num_features, *hidden, latent_dim])

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent"]:
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected [batch, {self.num_features}]")
        return self.layers(x)


class MLPDecoder(nn.Module):
    """The layers of the :class:`MLPEncoder` of the same arguments in reverse, with a linear output."""

    def __init__(self, num_features: int, hidden: Sequence[int] = (16,), latent_dim: int = 8):
        super().__init__()
        self.layers = _linears([latent_dim, *reversed(hidden), num_features])

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch features"]:
        return self.layers(z)


def _linears(widths: Sequence[int]) -> nn.Sequential:
    if min(widths) < 1:
        raise ValueError(f"widths: got {list(widths)}, expected at least 1")
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

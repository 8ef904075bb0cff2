"""Prototypes as a layer: distances to m learned vectors, and the bias-free head that turns distances into logits.

Source: Li, Liu, Chen & Rudin, "Deep Learning for Case-Based Reasoning through Prototypes" (AAAI 2018).
"""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from flambeau.nn.distances import squared_distances


class PrototypeLayer(nn.Module):
    """Squared distances d_ij = ‖z_i − p_j‖² to m learned prototypes, which are tied to no sample (section 3).

    Args:
        num_prototypes: m.
        latent_dim: q, the length of a code.

    The prototypes start from U[0, 1), as the authors' do.

    Raises:
        ValueError: a size below 1; in ``forward``, codes that are not [batch, latent_dim].
    """

    def __init__(self, num_prototypes: int, latent_dim: int):
        super().__init__()
        if num_prototypes < 1 or latent_dim < 1:
            raise ValueError(f"num_prototypes, latent_dim: got {num_prototypes} and {latent_dim}, expected at least 1")
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, latent_dim))

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch prototypes"]:
        if z.ndim != 2 or z.shape[1] != self.prototypes.shape[1]:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected [batch, {self.prototypes.shape[1]}]")
        return squared_distances(z, self.prototypes)


class PrototypeHead(nn.Module):
    """Logits = d W without a bias, so that d_j·w_jk is exactly what prototype j says about class k.

    A prototype supports a class through a negative weight: a small distance then gives a large logit.

    Args:
        num_prototypes: m, the rows of W.
        num_classes: K, the columns of W.
        mode: ``"free"`` learns W (the paper); ``"fixed_class"`` gives prototype j to class j mod K and fixes w = −1 for
            its own class and +gamma for the others.
        init: ``"uniform"`` starts a free W from U[0, 1) (the authors' code); ``"assigned"`` starts it where
            ``"fixed_class"`` holds it.
        gamma: weight of a prototype for the classes that are not its own.

    Raises:
        ValueError: unknown mode or init, sizes below 1 (2 for classes), negative gamma; fewer prototypes than classes
            with ``"fixed_class"`` (with ``"free"`` that is a warning).
    """

    weight: Tensor

    def __init__(
        self, num_prototypes: int, num_classes: int, *, mode: str = "free", init: str = "uniform", gamma: float = 0.1
    ):
        super().__init__()
        if mode not in ("free", "fixed_class"):
            raise ValueError(f"mode: got {mode!r}, expected 'free' or 'fixed_class'")
        if init not in ("uniform", "assigned"):
            raise ValueError(f"init: got {init!r}, expected 'uniform' or 'assigned'")
        if num_prototypes < 1 or num_classes < 2:
            raise ValueError(f"got {num_prototypes} prototypes and {num_classes} classes, expected at least 1 and 2")
        if gamma < 0:
            raise ValueError(f"gamma: got {gamma}, expected >= 0")
        if num_prototypes < num_classes:
            message = f"num_prototypes: got {num_prototypes} for {num_classes} classes, so some class has no prototype"
            if mode == "fixed_class":
                raise ValueError(message)
            warnings.warn(message, stacklevel=3)
        self.mode = mode
        self.gamma = gamma
        if mode == "fixed_class":
            self.register_buffer("weight", torch.empty(num_prototypes, num_classes))
        else:
            self.weight = nn.Parameter(torch.rand(num_prototypes, num_classes))
        if mode == "fixed_class" or init == "assigned":
            self.assign(torch.arange(num_prototypes) % num_classes)

    @property
    def favoured_class(self) -> Tensor:
        """Class of each prototype's most negative weight: the one it speaks for, [prototypes] int64."""
        return self.weight.detach().argmin(dim=1)

    @torch.no_grad()
    def assign(self, classes: Int64[Tensor, " prototypes"]) -> None:
        """Set W to −1 for each prototype's class and +gamma for the others."""
        self.weight.fill_(self.gamma)
        self.weight.scatter_(1, classes.to(self.weight.device).unsqueeze(1), -1.0)

    def forward(self, distances: Float[Tensor, "batch prototypes"]) -> Float[Tensor, "batch classes"]:
        return distances @ self.weight

    def contributions(self, distances: Float[Tensor, "batch prototypes"]) -> Float[Tensor, "batch prototypes classes"]:
        """d_j·w_jk; summed over the prototypes these are the logits."""
        return distances.unsqueeze(-1) * self.weight

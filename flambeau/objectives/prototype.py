"""The four terms that make a prototype net accurate, decodable and honest about its prototypes.

Source: Li, Liu, Chen & Rudin, "Deep Learning for Case-Based Reasoning through Prototypes" (AAAI 2018), section 3.2.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flambeau.models.prototype_net import PrototypeNet, PrototypeOutput
from flambeau.nn.distances import squared_distances


def prototype_distance_terms(
    distances: Float[Tensor, "batch prototypes"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(R1, R2) of a table of squared distances.

    R1 = mean over prototypes of the distance to the nearest input, so that every prototype decodes to something real;
    R2 = mean over inputs of the distance to the nearest prototype, so that every input has a prototype.
    """
    return distances.min(0).values.mean(), distances.min(1).values.mean()


class PrototypeLoss:
    """λ_class·CE + λ_ae·R + λ_1·R1 + λ_2·R2, for :class:`~flambeau.models.prototype_net.PrototypeNet`.

    R is the squared reconstruction error summed over an input and averaged over the batch. A weight of 0 removes the
    term (the paper's ablation); its value is still reported.

    Args:
        cls, ae, r1, r2: λ_class, λ_ae, λ_1, λ_2, with the paper's values for MNIST.
        r1_pool: where R1 looks for the input nearest to a prototype. ``"batch"`` is the paper's; in a batch with few
            inputs per prototype that minimum is too large and jumps from step to step. ``"bank"`` adds what is in the
            net's memory of recent codes; ``"epoch"`` adds the codes of the last ``epoch_size`` inputs. Remembered codes
            are constants: through them R1 moves prototypes only.
        epoch_size: training inputs in an epoch.

    Calling it with a net and a batch (x, labels) gives ``loss``, the unweighted ``cls``, ``ae``, ``r1``, ``r2``, and
    the batch's ``accuracy``.

    Raises:
        ValueError: negative weights, unknown pool, ``"epoch"`` without its size. In the call: fewer than two inputs,
            labels outside [0, K) or of another length, a net with too small a memory, inputs the net refuses.
        TypeError: labels that are not int64.
    """

    def __init__(
        self,
        cls: float = 20.0,
        ae: float = 1.0,
        r1: float = 1.0,
        r2: float = 1.0,
        *,
        r1_pool: str = "batch",
        epoch_size: int | None = None,
    ):
        self.weights = {"cls": cls, "ae": ae, "r1": r1, "r2": r2}
        if min(self.weights.values()) < 0:
            raise ValueError(f"cls, ae, r1, r2: got {tuple(self.weights.values())}, expected weights >= 0")
        if r1_pool not in ("batch", "bank", "epoch"):
            raise ValueError(f"r1_pool: got {r1_pool!r}, expected 'batch', 'bank' or 'epoch'")
        if r1_pool == "epoch" and (epoch_size is None or epoch_size < 1):
            raise ValueError(f"epoch_size: got {epoch_size}, expected the number of training inputs")
        self.r1_pool, self.epoch_size = r1_pool, epoch_size

    def __call__(
        self, net: PrototypeNet, batch: tuple[Float[Tensor, "batch *shape"], Int64[Tensor, " batch"]]
    ) -> dict[str, Float[Tensor, ""]]:
        x, y = batch
        if len(x) < 2:
            raise ValueError(f"batch: got {len(x)} inputs, expected at least 2")
        check_labels(y, len(x), net.num_classes)
        output = net(x)
        r1, r2 = prototype_distance_terms(output.distances)
        if self.r1_pool != "batch":
            r1 = self._pooled(net, output)
        terms = {
            "cls": F.cross_entropy(output.logits, y),
            "ae": (output.recon - x).square().flatten(1).sum(1).mean(),
            "r1": r1,
            "r2": r2,
        }
        loss = sum(weight * terms[name] for name, weight in self.weights.items() if weight)
        accuracy = (output.logits.detach().argmax(1) == y).float().mean()
        logged = {name: term.detach() for name, term in terms.items()} | {"accuracy": accuracy}
        return {"loss": torch.as_tensor(loss)} | logged

    def _pooled(self, net: PrototypeNet, output: PrototypeOutput) -> Float[Tensor, ""]:
        size = self.epoch_size if self.r1_pool == "epoch" else len(net.memory)
        if not size or size > len(net.memory):
            needed = f"PrototypeNet(memory={size or 'more than 0'})"
            raise ValueError(f"net: got a memory of {len(net.memory)} codes, r1_pool={self.r1_pool!r} needs {needed}")
        closest = output.distances.min(0).values
        past = net.remembered(size)
        if len(past):
            closest = torch.minimum(closest, squared_distances(past, net.prototypes).min(0).values)
        if net.training and torch.is_grad_enabled():
            net.memorise(output.z)
        return closest.mean()


def reconstruction_loss(net: PrototypeNet, batch: tuple[Tensor, Tensor]) -> dict[str, Float[Tensor, ""]]:
    """The autoencoder's term alone, R: the warm-up before prototypes are put among encoded data."""
    x = batch[0]
    return {"loss": (net(x).recon - x).square().flatten(1).sum(1).mean()}


def check_labels(y: Tensor, count: int, num_classes: int) -> None:
    """Raise unless y is int64 [count] with values in [0, num_classes)."""
    if y.dtype != torch.int64:
        raise TypeError(f"labels: got {y.dtype}, expected int64")
    if y.shape != (count,):
        raise ValueError(f"labels: got shape {tuple(y.shape)}, expected [{count}]")
    low, high = (int(bound) for bound in y.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels: got values from {low} to {high}, expected [0, {num_classes})")

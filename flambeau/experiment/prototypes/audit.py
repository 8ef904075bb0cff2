"""What the prototypes of a net stand for: their training cases, duplicates, classes, purity and influence.

Source: Li et al., "Deep Learning for Case-Based Reasoning through Prototypes" (AAAI 2018), who look at decoded
prototypes and W by eye; purity as in Nauta et al., PIP-Net (CVPR 2023), on whole cases instead of patches.
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flambeau.models.prototype_net import PrototypeNet, latent_spread
from flambeau.nn.distances import nearest, squared_distances


@dataclass(frozen=True)
class PrototypeRecord:
    """One prototype.

    Attributes:
        prototype: its index.
        nearest_case: training case whose code is nearest; ``latent_distance`` is their squared distance.
        label: class of that case.
        speaks_for: class of its most negative weight.
        purity: share of the ``k`` nearest encoded cases that have ``label``.
        nearest_looking_case: training case most like the decoded prototype; ``pixel_distance`` is their L2 distance.
        influence: test accuracy lost when the prototype is removed.
    """

    prototype: int
    nearest_case: int
    latent_distance: float
    label: int
    speaks_for: int
    purity: float
    nearest_looking_case: int
    pixel_distance: float
    influence: float


@dataclass(frozen=True)
class PrototypeAudit:
    """The audit of a net.

    Attributes:
        records: one for each prototype.
        duplicates: pairs of prototypes that are closer than ``epsilon`` (squared latent distance).
        covered: classes that are the label of some prototype.
        agreement: share of prototypes that speak for their label.
        accuracy: on the test cases, with all prototypes.
        to_case: mean squared latent distance from a prototype to its nearest training case (R1 over the whole set).
        to_prototype: mean squared latent distance from a test case to its nearest prototype (R2).
        spread: mean squared latent distance between two training cases.
        reconstruction: mean squared error of the decoder on the test cases, for each value of an input.
    """

    records: list[PrototypeRecord]
    duplicates: list[tuple[int, int]]
    covered: list[int]
    agreement: float
    accuracy: float
    to_case: float
    to_prototype: float
    spread: float
    reconstruction: float

    def rows(self) -> list[dict[str, float]]:
        """The records as dictionaries."""
        return [asdict(record) for record in self.records]


@torch.no_grad()
def audit_prototypes(
    net: PrototypeNet,
    train_x: Float[Tensor, "n *shape"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "t *shape"],
    test_y: Int64[Tensor, " t"],
    *,
    k: int = 10,
    epsilon: float = 1e-6,
) -> PrototypeAudit:
    """Audit ``net`` against its training cases, with influence measured on test cases.

    Raises:
        ValueError: k outside [1, training cases].
    """
    device = net.prototypes.device
    codes, train_y, test_y = net.encode_all(train_x), train_y.to(device), test_y.to(device)
    distances, cases = nearest(net.prototypes, codes, k)
    labels = train_y[cases[:, 0]]
    purity = (train_y[cases] == labels.unsqueeze(1)).float().mean(1)
    pixel_distances, lookalikes = nearest(net.decode_prototypes().flatten(1), train_x.to(device).flatten(1))
    test_distances = net.prototype_layer(net.encode_all(test_x))
    logits = net.head(test_distances)
    accuracy = _accuracy(logits, test_y)
    speaks_for = net.head.favoured_class
    records = []
    for j in range(len(net.prototypes)):
        without = logits - test_distances[:, j : j + 1] * net.head.weight[j]
        records.append(
            PrototypeRecord(
                prototype=j,
                nearest_case=int(cases[j, 0]),
                latent_distance=float(distances[j, 0]),
                label=int(labels[j]),
                speaks_for=int(speaks_for[j]),
                purity=float(purity[j]),
                nearest_looking_case=int(lookalikes[j, 0]),
                pixel_distance=float(pixel_distances[j, 0].sqrt()),
                influence=accuracy - _accuracy(without, test_y),
            )
        )
    close = (squared_distances(net.prototypes, net.prototypes) < epsilon).triu(1).nonzero()
    return PrototypeAudit(
        records,
        duplicates=[(int(i), int(j)) for i, j in close],
        covered=sorted(set(labels.tolist())),
        agreement=float((speaks_for == labels).float().mean()),
        accuracy=accuracy,
        to_case=float(distances[:, 0].mean()),
        to_prototype=float(test_distances.min(1).values.mean()),
        spread=latent_spread(codes),
        reconstruction=_reconstruction(net, test_x),
    )


def _reconstruction(net: PrototypeNet, x: Tensor) -> float:
    parts = x.to(net.prototypes.device).split(512)
    return float(sum((net.decoder(net.encode_all(part)) - part).square().sum() for part in parts) / x.numel())


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())

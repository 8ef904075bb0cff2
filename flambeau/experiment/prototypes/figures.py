"""Pictures of a prototype net: its decoded prototypes beside their training cases, and which classes they cover."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from flambeau.experiment.prototypes.audit import PrototypeAudit
from flambeau.experiment.prototypes.explanation import show_case
from flambeau.models.prototype_net import PrototypeNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_prototypes(
    net: PrototypeNet, audit: PrototypeAudit, train_x: Float[Tensor, "n *shape"], classes: Sequence[str]
) -> "Figure":
    """Each prototype as the decoder draws it, above the training case whose code is nearest to it."""
    from matplotlib.figure import Figure

    records = sorted(audit.records, key=lambda record: (record.label, record.prototype))[:20]
    decoded = net.decode_prototypes().cpu()
    figure = Figure(figsize=(max(4.0, len(records)), 2.8))
    axes = figure.subplots(2, len(records), squeeze=False)
    for (above, below), record in zip(axes.T, records):
        show_case(above, decoded[record.prototype], f"says {classes[record.speaks_for]}")
        show_case(below, train_x[record.nearest_case].cpu(), f"case of {classes[record.label]}")
    figure.suptitle("Prototypes (above) and the training case nearest to each", fontsize=10)
    figure.tight_layout()
    return figure


def draw_coverage(audits: Mapping[str, PrototypeAudit], classes: Sequence[str]) -> "Figure":
    """How many prototypes stand for each class, a row of bars for each audited net."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 1.5 * len(audits) + 0.5))
    for axis, (name, audit) in zip(figure.subplots(len(audits), 1, sharex=True, squeeze=False)[:, 0], audits.items()):
        counts = [sum(record.label == k for record in audit.records) for k in range(len(classes))]
        axis.bar(range(len(classes)), counts)
        covered = f"{len(audit.covered)} of {len(classes)} classes"
        axis.set_title(f"{name}: {covered}, agreement {audit.agreement:.0%}", fontsize=9)
        axis.set_xticks(range(len(classes)), classes, fontsize=7, rotation=45 if len(classes) > 10 else 0)
        axis.set_ylabel("prototypes", fontsize=7)
    figure.tight_layout()
    return figure

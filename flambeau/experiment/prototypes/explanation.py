"""Why a prototype net predicts what it predicts: the same numbers the net adds up, with the cases behind them."""

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from flambeau.files import write_bytes
from flambeau.models.prototype_net import PrototypeNet
from flambeau.nn.distances import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """One prediction. Whatever has a prototype axis is sorted by distance, the nearest prototype first.

    Attributes:
        input, recon: the input and its reconstruction.
        prototypes: index of each prototype in the net.
        distances: squared latent distances.
        contributions: d_j·w_jk in float64; they sum exactly to ``logits``.
        logits: evidence for each class.
        decoded: what each prototype looks like.
        cases: index of the training case nearest to each prototype, and ``case_inputs`` its input.
        classes: names of the classes.
    """

    input: Float[Tensor, "*shape"]
    recon: Float[Tensor, "*shape"]
    prototypes: Int64[Tensor, " prototypes"]
    distances: Float[Tensor, " prototypes"]
    contributions: Float64[Tensor, "prototypes classes"]
    decoded: Float[Tensor, "prototypes *shape"]
    cases: Int64[Tensor, " prototypes"]
    case_inputs: Float[Tensor, "prototypes *shape"]
    classes: tuple[str, ...]

    @property
    def logits(self) -> Float64[Tensor, " classes"]:
        return self.contributions.sum(0)

    @property
    def probabilities(self) -> Float64[Tensor, " classes"]:
        return self.logits.softmax(0)

    @property
    def prediction(self) -> int:
        return int(self.logits.argmax())

    @property
    def runner_up(self) -> int:
        return int(self.logits.topk(2).indices[1])

    @property
    def margins(self) -> Float64[Tensor, " prototypes"]:
        """How much each prototype speaks for the prediction rather than the runner-up; sums to the logits' difference.

        The softmax sees only differences of logits, so this, not a single contribution, is what decided.
        """
        return self.contributions[:, self.prediction] - self.contributions[:, self.runner_up]

    def figure(self, top: int = 5) -> "Figure":
        """The input, the ``top`` nearest prototypes, and below each the training case that stands for it."""
        from matplotlib.figure import Figure

        top = min(top, len(self.prototypes))
        figure = Figure(figsize=(1.7 * (top + 1), 4.4))
        axes = figure.subplots(2, top + 1)
        named = f"{self.classes[self.prediction]} ({float(self.probabilities[self.prediction]):.0%})"
        show_case(axes[0, 0], self.input, f"input: {named}\nnext: {self.classes[self.runner_up]}")
        show_case(axes[1, 0], self.recon, "reconstruction")
        for column in range(top):
            number, distance = int(self.prototypes[column]), float(self.distances[column])
            margin = float(self.margins[column])
            show_case(axes[0, column + 1], self.decoded[column], f"prototype {number}\nd={distance:.2f}, {margin:+.1f}")
            show_case(axes[1, column + 1], self.case_inputs[column], f"training case {int(self.cases[column])}")
        rivals = f"{self.classes[self.prediction]} rather than {self.classes[self.runner_up]}"
        figure.suptitle(f"d: squared distance, then how much the prototype speaks for {rivals}", fontsize=9)
        figure.tight_layout()
        return figure

    def html(self, top: int = 5) -> str:
        """A page that stands alone: the figure, and every prototype's contribution to every class."""
        picture = io.BytesIO()
        self.figure(top).savefig(picture, format="png", dpi=110)
        encoded = base64.b64encode(picture.getvalue()).decode()
        names = [html.escape(name) for name in self.classes]
        head = "".join(f"<th>{name}</th>" for name in ["prototype", "training case", "distance", *names])
        rows = [
            [str(int(number)), str(int(case)), f"{float(distance):.4f}", *(f"{float(v):+.4f}" for v in values)]
            for number, case, distance, values in zip(self.prototypes, self.cases, self.distances, self.contributions)
        ]
        rows.append(["sum", "", "", *(f"<b>{float(v):+.4f}</b>" for v in self.logits)])
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explanation</title>'
            "<style>body{font:15px sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right}"
            "img{max-width:100%}</style>"
            f"<h1>Predicted: {names[self.prediction]}</h1>"
            f'<img alt="the input, its nearest prototypes and their training cases" '
            f'src="data:image/png;base64,{encoded}">'
            "<p>Each prototype adds distance times weight to each class; the column sums are the logits.</p>"
            f"<table><tr>{head}</tr>{body}</table></html>"
        )

    def save(self, path: str | os.PathLike, top: int = 5) -> None:
        """Write the report as ``.html`` or ``.png``, atomically.

        Raises:
            ValueError: another suffix.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".html":
            write_bytes(Path(path), self.html(top).encode())
        elif suffix == ".png":
            content = io.BytesIO()
            self.figure(top).savefig(content, format="png", dpi=110)
            write_bytes(Path(path), content.getvalue())
        else:
            raise ValueError(f"path: got suffix {suffix!r}, expected '.html' or '.png'")


@torch.no_grad()
def explain(
    net: PrototypeNet,
    x: Float[Tensor, "batch *shape"],
    train_x: Float[Tensor, "n *shape"],
    *,
    classes: Sequence[str] | None = None,
) -> list[Explanation]:
    """Explain the prediction of each input of a batch, with ``train_x`` as the cases to refer to.

    Raises:
        ValueError: as many class names as the net has classes are expected; inputs the net refuses.
    """
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(net.num_classes))
    if len(names) != net.num_classes:
        raise ValueError(f"classes: got {len(names)} names, expected {net.num_classes}")
    x = x.to(net.prototypes.device)
    z = net.encode_all(x)
    distances = net.prototype_layer(z)
    contributions = net.head.contributions(distances.double()).cpu()
    cases = nearest(net.prototypes, net.encode_all(train_x))[1][:, 0].cpu()
    decoded, recon = net.decode_prototypes().cpu(), net.decoder(z).cpu()
    explanations = []
    for i in range(len(x)):
        order = distances[i].argsort().cpu()
        explanations.append(
            Explanation(
                input=x[i].cpu(),
                recon=recon[i],
                prototypes=order,
                distances=distances[i].cpu()[order],
                contributions=contributions[i][order],
                decoded=decoded[order],
                cases=cases[order],
                case_inputs=train_x[cases[order]].cpu(),
                classes=names,
            )
        )
    return explanations


def show_case(axis: "Axes", item: Tensor, title: str) -> None:
    """An image [1 or 3, height, width] as a picture, anything else as bars of its values."""
    if item.ndim == 3 and item.shape[0] in (1, 3):
        axis.imshow(item.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
    else:
        axis.barh(range(item.numel()), item.flatten())
        axis.invert_yaxis()
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])

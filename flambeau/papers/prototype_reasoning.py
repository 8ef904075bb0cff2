"""Deep learning for case-based reasoning through prototypes: a classifier whose evidence can be decoded and shown."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from flambeau.data import Batches, ImageSet, Table, breast_cancer, digits, elastic_deform, random_shift
from flambeau.data.labelled import labelled_cases
from flambeau.experiment import Claim, experiment
from flambeau.experiment.prototypes.audit import PrototypeAudit, audit_prototypes
from flambeau.experiment.prototypes.baselines import kmeans_accuracy, linear_head_accuracies
from flambeau.experiment.prototypes.explanation import explain
from flambeau.experiment.prototypes.figures import draw_coverage, draw_prototypes
from flambeau.models.autoencoder import autoencoder_for
from flambeau.models.prototype_net import PrototypeNet
from flambeau.objectives.prototype import PrototypeLoss
from flambeau.symbolic import symbolize
from flambeau.training import Trainer
from flambeau.training.estimators import PrototypeClassifier
from flambeau.training.prototypes import fit_prototypes

# fmt: off
CLAIMS = [
    Claim("accuracy", "test accuracy on digits", paper="99.22 % (MNIST, 1500 epochs)", at_least=0.95),
    Claim("against_linear_head", "test accuracy, minus that of the same encoder with a linear head",
          paper="99.22 vs 99.24 % (MNIST)", unit="points", at_least=-2.5),
    Claim("prototypes_are_cases", "mean squared latent distance of a prototype to the nearest training case, "
          "over that of two training cases", at_most=0.25),
    Claim("reconstruction", "mean squared error per pixel of the decoder on test digits", at_most=0.045),
    Claim("without_r1", "prototype to nearest case without the term R1, over with it, from the start U[0, 1) "
          "(a k-means start puts the prototypes among the cases by itself)", unit="x", at_least=2.0),
    Claim("without_r2", "test case to nearest prototype without the term R2, over with it", unit="x", at_least=1.3),
    Claim("fixed_coverage", "share of the classes that have a prototype when W is fixed by class", at_least=0.9),
    Claim("fixed_agreement", "share of prototypes whose nearest case is of their class when W is fixed by class",
          at_least=0.9),
    Claim("coverage", "share of the classes that have a prototype: k-means start, against the paper's U[0, 1)"),
    Claim("breast_cancer", "test accuracy on the breast cancer table with prototypes in its units", at_least=0.93),
]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"training.epochs": 2, "tables.steps": 10},
    "paper": {"data": "mnist/", "training.epochs": 1500, "init": "uniform", "weight_std": 0.01, "augment": "elastic"},
}
# fmt: on
ON_DIGITS = [claim.name for claim in CLAIMS if claim.name not in ("against_linear_head", "prototypes_are_cases")]

ARMS: dict[str, dict[str, Any]] = {
    "fixed_class": {"w_mode": "fixed_class", "init": "kmeans"}, "uniform": {"init": "uniform"},
    "without_r1": {"init": "uniform", "r1": 0.0}, "without_r2": {"r2": 0.0},
}  # fmt: skip
AUGMENTATIONS = {
    "shift": lambda batch, generator: (random_shift(batch[0], 1, generator, probability=0.3), batch[1]),
    "elastic": lambda batch, generator: (elastic_deform(batch[0], 4.0, 20.0, generator), batch[1]),
    "none": None,
}


@experiment("prototype_reasoning", claims=CLAIMS, presets=PRESETS)
def run(
    run: Any,
    *,
    data: ImageSet | Table | str = symbolize(digits)(),
    target: str = "",
    size: int = 32,
    prototypes: int = 15,
    w_mode: Literal["free", "fixed_class"] = "free",
    init: Literal["kmeans", "uniform"] = "kmeans",
    loss: PrototypeLoss = symbolize(PrototypeLoss)(),
    augment: Literal["shift", "elastic", "none"] = "shift",
    weight_std: float | None = None,
    batch_size: int = 250,
    training: Trainer = symbolize(Trainer)(epochs=120, optimizer=symbolize(torch.optim.Adam).partial(lr=0.002)),
    tables: PrototypeClassifier = symbolize(PrototypeClassifier)(random_state=0),
) -> None:
    """Train a prototype net, audit and explain it, beside its ablations and the same network with a linear head.

    data: labelled images or a table; a folder of class folders, an MNIST-style file or folder, or a CSV file.
    target: the label's column, for a CSV file.
    size: height and width in pixels to which the pictures of a folder are brought.
    prototypes: how many.
    w_mode: "free" (the paper) or "fixed_class".
    init: "kmeans", or "uniform" (the paper).
    loss: the four terms' weights, and where R1 looks.
    augment: what happens to training images: "shift" by a pixel, "elastic" deformation (the paper), or "none".
    weight_std: standard deviation of the filters at the start (the paper: 0.01); None for PyTorch's own.
    batch_size: cases in a step.
    training: the loop.
    tables: the classifier of the breast cancer run.
    """
    cases = labelled_cases(data, target=target, size=size, test_share=497 / 1797, seed=run.seed)
    transform = AUGMENTATIONS[augment] if cases.are_images else None
    batches = Batches((cases.train_x, cases.train_y), min(batch_size, len(cases.train_y)), transform=transform)

    def fitted(name: str, w_mode: Any = w_mode, init: Any = init, **weights: float) -> PrototypeNet:
        terms = PrototypeLoss(**(loss.weights | weights), r1_pool=loss.r1_pool, epoch_size=loss.epoch_size)
        memory = 0 if loss.r1_pool == "batch" else len(cases.train_y)
        torch.manual_seed(run.seed)
        pair = autoencoder_for(cases.train_x.shape[1:], weight_std)
        net = PrototypeNet(*pair, len(cases.classes), prototypes, w_mode=w_mode, memory=memory).to(run.device)
        folder = run.folder / "train" / name
        fit_prototypes(net, terms, batches, training, init=init, folder=folder, progress=run.progress, seed=run.seed)
        return net

    net = fitted("prototypes")
    sets = (cases.train_x, cases.train_y, cases.test_x, cases.test_y)
    audit = audit_prototypes(net, *sets)
    torch.manual_seed(run.seed)
    plain = autoencoder_for(cases.train_x.shape[1:], weight_std)[0].to(run.device)
    folder = run.folder / "train" / "linear_head"
    linear, near = linear_head_accuracies(
        plain, plain.latent_dim, cases, batches, training, folder=folder, progress=run.progress, seed=run.seed
    )
    run.measure("against_linear_head", ours=audit.accuracy, baseline=linear, value=100 * (audit.accuracy - linear))
    run.measure("prototypes_are_cases", ours=audit.to_case, baseline=audit.spread, value=audit.to_case / audit.spread)
    compared = {
        "prototype net": audit.accuracy, "same encoder, linear head": linear, "its codes, 5 nearest neighbours": near,
        f"{prototypes} k-means prototypes of the inputs": kmeans_accuracy(cases, prototypes, seed=run.seed),
    }  # fmt: skip
    run.table("accuracy", [{"model": name, "test accuracy": accuracy} for name, accuracy in compared.items()])
    run.table("prototypes", audit.rows())
    run.figure("prototypes", draw_prototypes(net, audit, cases.train_x, cases.classes))
    why = explain(net, cases.test_x[:1], cases.train_x, classes=cases.classes)[0]
    run.figure("explanation", why.figure())
    why.save(run.folder / "explanation.html")
    net.save(run.folder / "prototype_net.safetensors")
    if cases.columns is not None:
        rows = net.decode_prototypes().cpu() * cases.scale + cases.mean
        run.table("prototypes in the table's units", [dict(zip(cases.columns, row.tolist())) for row in rows])
    others = {}
    if isinstance(data, ImageSet) and data.images.shape == (1797, 1, 8, 8):
        for name, options in ARMS.items():
            others[name] = audit_prototypes(fitted(name, **options), *sets)
        _measure_on_digits(run, audit, others)
        _measure_breast_cancer(run, tables)
    else:
        for name in ON_DIGITS:
            run.unmeasured(name, why="set on the digits of scikit-learn; this run is on other data")
    audits = {"prototypes": audit, **others}
    rows = [(name, a.accuracy, len(a.covered), a.agreement) for name, a in audits.items()]
    run.table("nets", [dict(zip(("net", "test accuracy", "classes covered", "agreement"), row)) for row in rows])
    run.figure("coverage", draw_coverage(audits, cases.classes))


def _measure_on_digits(run: Any, audit: PrototypeAudit, others: dict[str, PrototypeAudit]) -> None:
    """The claims with thresholds for digits; ``others`` are trained with another W or start, or without a term."""
    fixed, uniform = others["fixed_class"], others["uniform"]
    covered, fixed_covered, uniform_covered = (len(a.covered) / 10 for a in (audit, fixed, uniform))
    to_case, to_prototype = others["without_r1"].to_case, others["without_r2"].to_prototype
    run.measure("accuracy", ours=audit.accuracy, value=audit.accuracy)
    run.measure("reconstruction", ours=audit.reconstruction, value=audit.reconstruction)
    run.measure("without_r1", ours=uniform.to_case, baseline=to_case, value=to_case / uniform.to_case)
    run.measure("without_r2", ours=audit.to_prototype, baseline=to_prototype, value=to_prototype / audit.to_prototype)
    run.measure("fixed_coverage", ours=fixed_covered, baseline=covered, value=fixed_covered)
    run.measure("fixed_agreement", ours=fixed.agreement, baseline=audit.agreement, value=fixed.agreement)
    run.measure("coverage", ours=covered, baseline=uniform_covered, value=covered - uniform_covered)


def _measure_breast_cancer(run: Any, classifier: PrototypeClassifier) -> None:
    train, test = breast_cancer().split((0.7, 0.3), run.seed)
    classifier.set_params(random_state=run.seed).fit(train.features.numpy(), train.target.numpy())
    accuracy = classifier.score(test.features.numpy(), test.target.numpy())
    run.measure("breast_cancer", ours=accuracy, value=accuracy)
    speaks_for = np.array(train.classes)[classifier.net_.head.favoured_class.numpy()].tolist()
    rows = [[name, *row[:8].round(3).tolist()] for name, row in zip(speaks_for, classifier.prototypes_)]
    run.table("breast cancer prototypes", [dict(zip(("speaks for", *train.names[:8]), row)) for row in rows])

"""``flambeau search``: let an algorithm decide the choices that a user wrote into an experiment's parameters."""

from __future__ import annotations

import time
from pathlib import Path

from flambeau.experiment.definition import Experiment
from flambeau.experiment.runner import run_experiment
from flambeau.files import write_json
from flambeau.papers.catalog import load
from flambeau.search import Feedback, Study, search
from flambeau.symbolic import Node, parse_value, symbolize, template, to_json
from flambeau.training.progress import Progress


def search_experiment(
    experiment: Experiment,
    *,
    tree: Node,
    trials: int,
    algorithm: str,
    folder: Path,
    metric: str | None = None,
    preset: str = "cpu",
    seed: int = 0,
    device: str = "cpu",
    backend: str = "inline",
    workers: int = 1,
    progress: Progress | None = None,
) -> Study:
    """Search over the choices of `tree`; continues the study that `folder` holds.

    Args:
        tree: the experiment's parameters, with ``oneof``, ``floatv``, ... in place of some values.
        algorithm: a search algorithm as text, for example ``"RegularizedEvolution(population=10, tournament=3)"``.
        metric: name of the claim whose value is to be improved, in the direction of its threshold; by default the
            first claim that has one.
        seed: of the search and of every trial, so that trials differ by their parameters only.

    Raises:
        ValueError: nothing to choose, an unknown algorithm or metric, or a folder that holds another search.
    """
    if template(tree).space_size == 1:
        raise ValueError("nothing to choose: write oneof([...]), floatv(low, high), ... in place of a value")
    chosen = parse_value(algorithm)
    if not isinstance(chosen, Node):
        raise ValueError(f"--algorithm must be a search algorithm such as Random(), got {algorithm!r}")
    folder.mkdir(parents=True, exist_ok=True)
    improved = metric_of(experiment, metric)
    where = str(folder.resolve())
    reward = TRIAL.partial(  # a node, so that the study file alone is enough to go on
        key=experiment.key, metric=improved, preset=preset, seed=seed, device=device, folder=where
    )
    study = search(
        tree, chosen, reward, trials, backend=backend, workers=workers,  # type: ignore[arg-type]
        study=folder / "study.db", name=experiment.key, seed=seed, infeasible="skip", progress=progress,
    )  # fmt: skip
    best = study.best()
    if best is not None:
        write_json(folder / "best.json", to_json(template(tree).decode(best.dna)))
    return study


def metric_of(experiment: Experiment, name: str | None) -> tuple[str, float]:
    """The claim to improve, and the sign of improvement: +1 for a threshold from below, -1 for one from above."""
    targets = {claim.name: -1.0 if claim.at_least is None else 1.0 for claim in experiment.claims if claim.target}
    name = name or next(iter(targets))
    if name not in targets:
        raise ValueError(f"unknown metric {name!r}; claims with a threshold are {', '.join(targets)}")
    return name, targets[name]


def trial(
    value: Node,
    feedback: Feedback,
    *,
    key: str,
    metric: tuple[str, float],
    preset: str,
    seed: int,
    device: str,
    folder: str,
) -> float | None:
    """Run one candidate in a folder of its own; its reward is the claim's value, larger is better."""
    name, sign = metric
    began = time.strftime("%Y-%m-%d_%H-%M-%S")
    out = Path(folder) / "trials" / f"{feedback.id:05d}_{began}"
    result = run_experiment(load(key), tree=value, out=out, preset=preset, seed=seed, device=device)
    measured = {claim["name"]: claim["value"] for claim in result["claims"] if claim["value"] is not None}
    if name not in measured:
        feedback.skip()
        return None
    return sign * measured[name]


# Held here, so that a study file may name it: files cannot call functions of the application otherwise.
TRIAL = symbolize(trial)

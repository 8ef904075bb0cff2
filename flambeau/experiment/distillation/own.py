"""A distillation that the user's configuration describes: trained, tested, and written to the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flambeau.training.distillation as distillation
from flambeau.experiment.distillation import figures
from flambeau.training.distillation.config import load_config
from flambeau.training.distillation.run import distill, evaluate_models

CONFIGS = Path(distillation.__file__).parent / "configs"


def config_path(name: str) -> Path:
    """The file of a config: a path, or "flambeau:NAME.yaml" for one that comes with the library.

    Raises:
        ValueError: there is no such file; with the ready ones if one of them was meant.
    """
    if not name.startswith("flambeau:"):
        if not Path(name).is_file():
            raise ValueError(f"config: {name} is no file; ready configs are named flambeau:NAME.yaml")
        return Path(name)
    path = (CONFIGS / name.removeprefix("flambeau:")).resolve()
    if not path.is_relative_to(CONFIGS.resolve()) or not path.is_file():
        ready = ", ".join(sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")))
        raise ValueError(f"config: there is no ready config {name!r}; there are {ready}")
    return path


def run_config(
    run: Any, name: str, *, test_only: bool = False, student_only: bool = False, allow: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Train and test what the config says, or with `test_only` test the weights in its files; gives the test's values.

    ``distillation/`` in the run's folder holds a copy of the config, the log, checkpoints and the student's weights.
    """
    path = config_path(name)
    if test_only:
        tested = evaluate_models(path, student_only=student_only, device=run.device, allow=allow)
    else:
        seed = load_config(path, allow).get("seed", run.seed)
        outcome = distill(
            path, folder=run.folder / "distillation", progress=run.progress, device=run.device, seed=seed, allow=allow
        )
        tested = {which: values for which, values in outcome["test"].items() if which == "student" or not student_only}
        losses = [entry["loss"] for fit in outcome["fits"] for entry in fit.history]
        run.figure("losses", figures.losses_figure({path.stem: losses}))
        run.note(f"{len(losses)} steps; the student's weights are in distillation/student.safetensors.")
    run.table("test", [{"model": which, **values} for which, values in tested.items()])
    if not tested:
        run.note("Nothing was tested: the config has no test_data_loader.")
    return tested

"""``flambeau study``: look into a study file, take its trials out, go on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flambeau.search.study import Study, StudyError, Trial, as_json, studies

study_app = typer.Typer(help="Studies: the trials of searches, one file for many.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A study file, such as searches/KEY/.../study.db.")]
Name = Annotated[str | None, typer.Option(help="Which study of the file; not needed if it holds one.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@study_app.command("ls")
def ls(file: File, machine: Json = False) -> None:
    """List the studies of a file: trials, how many are finished, the best reward."""
    rows = [summary(study) for study in studies(file)]
    if machine:
        print(json.dumps({"studies": rows}))
    else:
        table([["study", "status", "trials", "finished", "best", "trial"], *(list(row.values()) for row in rows)])


@study_app.command("show")
def show(
    file: File,
    name: Name = None,
    trial: Annotated[int | None, typer.Option(help="Everything about one trial.")] = None,
    top: Annotated[int, typer.Option(help="How many trials, best first.", min=1)] = 20,
) -> None:
    """Show the best trials of a study, or one trial."""
    study = pick(file, name)
    if trial is not None:
        print(json.dumps(as_json(study.trial(trial)), indent=1))
        return
    trials = study.trials()
    ranked = sorted((t for t in trials if t.reward is not None), key=lambda t: t.reward, reverse=True)
    ranked += [t for t in trials if t.reward is None]
    table([["trial", "state", "reward", "steps", "dna"], *map(line, ranked[:top])])
    if len(ranked) > top:
        print(f"... and {len(ranked) - top} more")


@study_app.command("export")
def export(
    file: File, target: Annotated[Path, typer.Argument(help="A .csv or .json file.")], name: Name = None
) -> None:
    """Write the trials of a study as a CSV table or as JSON."""
    pick(file, name).export(target)


@study_app.command("resume")
def resume(
    file: File,
    name: Name = None,
    trials: Annotated[int | None, typer.Option(help="Go on up to this many trials.", min=1)] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Import whatever functions the file names, also from outside flambeau.")
    ] = False,
) -> None:
    """Go on with a search that was interrupted."""
    import flambeau.app.search  # noqa: F401  (a search of the command line names the function that runs its trials)
    from flambeau.search.evaluate import resume as resume_search
    from flambeau.training.progress import ConsoleProgress

    study = resume_search(pick(file, name), trusted=trusted, n=trials, progress=ConsoleProgress())
    table([["study", "status", "trials", "finished", "best", "trial"], list(summary(study).values())])


def pick(file: Path, name: str | None) -> Study:
    """The study of this name, or the only one."""
    if name is not None:
        return Study(file, name, create=False)
    found = studies(file)
    if len(found) != 1:
        raise StudyError(f"{file} holds {len(found)} studies; choose one by --name: {[study.name for study in found]}")
    return found[0]


def summary(study: Study) -> dict[str, Any]:
    done = [trial for trial in study.trials() if trial.reward is not None]
    best = max(done, key=lambda trial: trial.reward, default=None)  # by the first objective, if there are several
    return {
        "study": study.name,
        "status": study.status,
        "trials": study.count(),
        "finished": study.finished(),
        "best": best and best.reward,
        "trial": best and best.id,
    }


def line(trial: Trial) -> list[Any]:
    return [trial.id, trial.state, trial.reward, len(trial.measurements), trial.dna]


def table(rows: list[list[Any]]) -> None:
    """Columns as wide as they need to be."""
    texts = [
        ["-" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*texts)]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())

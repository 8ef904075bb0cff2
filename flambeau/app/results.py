"""Recorded results: the figures of the last scale run of each paper, as the board and the documentation show them."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import flambeau
from flambeau.files import read_json, write_json

FOLDER = Path(flambeau.__file__).parents[1] / "results"


def recorded(key: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The recorded result of a paper, or None."""
    path = folder / f"{key}.json"
    return read_json(path) if path.exists() else None


def picture(key: str, folder: Path = FOLDER) -> Path | None:
    """The recorded picture of a paper, or None."""
    path = folder / f"{key}.png"
    return path if path.exists() else None


def write_record(key: str, runs: list[dict[str, Any]], first: Path, folder: Path = FOLDER) -> Path:
    """Write ``KEY.json`` from runs over several seeds, and ``KEY.png`` from the first figure of the folder `first`."""
    claims = []
    for outcomes in zip(*(run["claims"] for run in runs)):
        values = [outcome["value"] for outcome in outcomes]
        measured = [value for value in values if value is not None]
        verdicts = [outcome["holds"] for outcome in outcomes]
        same = ("name", "statement", "paper", "unit", "target")
        claims.append(
            {name: outcomes[0][name] for name in same}
            | {
                "values": values,
                "median": statistics.median(measured) if measured else None,
                "ours": [outcome["ours"] for outcome in outcomes],
                "baseline": [outcome["baseline"] for outcome in outcomes],
                "holds": None if None in verdicts else all(verdicts),
            }
            | ({"why": outcomes[0]["why"]} if outcomes[0].get("why") else {})
        )
    kept = {name: runs[0][name] for name in ("paper", "preset", "commit", "environment", "notes", "tables")}
    path = folder / f"{key}.json"
    write_json(
        path,
        kept | {"seeds": [run["seed"] for run in runs], "seconds": [run["seconds"] for run in runs], "claims": claims},
    )
    if runs[0]["figures"]:
        shutil.copyfile(first / runs[0]["figures"][0], folder / f"{key}.png")
    return path

"""The report page of a run: one HTML file with its figures inside, for reading without the program."""

from __future__ import annotations

import base64
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from flambeau.files import read_json, write_bytes
from flambeau.papers.catalog import Paper


def figure(value: Any) -> str:
    """A figure with four significant digits; text as it is; nothing for None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:.4g}"


def templates() -> Environment:
    """The page templates, escaping everything that comes from a run or the catalog."""
    pages = Environment(
        loader=PackageLoader("flambeau.app"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    pages.filters["figure"] = figure
    return pages


def write_report(paper: Paper, folder: Path) -> Path:
    """Write ``report.html`` of the finished run in `folder` and return its path."""
    result = read_json(folder / "run.json")
    figures = {
        Path(name).stem: "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode()
        for name in result["figures"]
    }
    page = (
        templates()
        .get_template("report.html")
        .render(
            paper=paper,
            result=result,
            figures=figures,
            configuration=(folder / "config.json").read_text(),
            started=datetime.fromtimestamp(result["started"]).strftime("%Y-%m-%d %H:%M"),
        )
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path

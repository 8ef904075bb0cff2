"""MkDocs hook: a page for every paper from its module, its recorded result and ``parts/KEY.md``; one for every room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from flambeau.app.report import figure
from flambeau.app.results import picture, recorded
from flambeau.papers.catalog import Paper, catalog, describe

PARTS = Path(__file__).parent / "parts"  # what a paper's page says of its parts and of the user's own data
PACKAGE = Path(__file__).parents[1] / "flambeau"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages; edits of papers and results show at the next build."""
    files.append(File.generated(config, "papers/index.md", content=_index()))
    for paper in catalog().values():
        if paper.runs:
            files.append(File.generated(config, f"papers/{paper.key}.md", content=_paper(paper)))
            shown = picture(paper.key)
            if shown is not None:
                files.append(File.generated(config, f"papers/{paper.key}.png", abs_src_path=str(shown)))
    for room in sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        if room not in ("app", "papers"):
            files.append(File.generated(config, f"reference/{room}.md", content=_room(room)))
    return files


def _index() -> str:
    rows = ["# Papers", "", "| paper | family | runs |", "|---|---|---|"]
    for paper in sorted(catalog().values(), key=lambda paper: (not paper.runs, paper.key)):
        title = f"[{paper.title}]({paper.key}.md)" if paper.runs else paper.title
        rows.append(
            f"| {title} ({paper.year}) | {paper.family} | {'`flambeau run ' + paper.key + '`' if paper.runs else ''} |"
        )
    return "\n".join(rows)


def _paper(paper: Paper) -> str:
    description, result = describe(paper.key), recorded(paper.key)
    links = [f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"] if paper.arxiv else []
    links += [f"[the authors' code]({paper.code})"] if paper.code else []
    lines = [f"# {paper.title}", "", f"{paper.authors} ({paper.year}). {', '.join(links)}", "", description.summary, ""]
    lines += ["```", f"flambeau run {paper.key}", "```", ""]
    if picture(paper.key):
        lines += [f"![figure of the recorded run]({paper.key}.png)", ""]
    written = PARTS / f"{paper.key}.md"
    if written.exists():
        lines += [written.read_text().strip(), ""]
    lines += ["## Claims", ""]
    if result:
        lines += ["| claim | values over seeds | target | paper | holds? |", "|---|---|---|---|---|"]
        for claim in result["claims"]:
            values = ", ".join(figure(value) or "-" for value in claim["values"])
            holds = {True: "holds", False: "**does not hold**", None: claim.get("why") or "not judged"}[claim["holds"]]
            row = (
                claim["statement"],
                f"{values} {claim['unit']}" if claim["median"] is not None else "",
                claim["target"] or "",
                claim["paper"] or "",
                holds,
            )
            lines.append("| " + " | ".join(_cell(text) for text in row) + " |")
        machine = result["environment"]
        seeds = ", ".join(map(str, result["seeds"]))
        threads = f"{machine['isa']}, {machine['threads']} threads"
        lines += [
            "",
            f"Seeds {seeds}, preset {result['preset']}, {machine['cpu']} ({threads}), torch {machine['torch']}, ",
        ]
        lines += [f"code {result['commit']}.", ""]
        lines += [f"- {note}" for note in result["notes"]] + [""]
        for name, rows in result["tables"].items():
            if rows:
                lines += [
                    f"## {name.replace('_', ' ').capitalize()}",
                    "",
                    "| " + " | ".join(rows[0]) + " |",
                    "|" + "---|" * len(rows[0]),
                ]
                lines += ["| " + " | ".join(_cell(figure(value)) for value in row.values()) + " |" for row in rows] + [
                    ""
                ]
    else:
        lines += [
            f"- {claim.statement}" + (f" ({claim.target})" if claim.target else "") for claim in description.claims
        ] + [""]
    lines += [
        "## Parameters",
        "",
        "```text",
        description.documentation,
        "```",
        "",
        "| path | type | default |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{name}` | `{_cell(annotation)}` | `{_cell(default)}` |"
        for name, annotation, default in description.parameters
    ]
    for name, changes in description.presets.items():
        shown = ", ".join(f"`{path}={_cell(value)}`" for path, value in changes.items())
        lines += ["", f"Preset `{name}`: {shown}"]
    return "\n".join(lines)


def _room(room: str) -> str:
    lines = [f"# {room}", "", f"::: flambeau.{room}", ""]
    for path in sorted((PACKAGE / room).glob("*/__init__.py")):
        lines += [f"## {room}.{path.parent.name}", "", f"::: flambeau.{room}.{path.parent.name}"]
        lines += ["    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

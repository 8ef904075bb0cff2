"""``flambeau constrint``: solve a system of integer constraints written in a text file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def constrint(
    file: Annotated[Path, typer.Argument(help="The system, or - for standard input.", allow_dash=True)],
    prefer: Annotated[
        list[str] | None, typer.Option(help="NAME=largest or NAME=smallest, most important first.")
    ] = None,
    n: Annotated[int, typer.Option(help="Solutions wanted; 0 for all.", min=0)] = 1,
    bounds: Annotated[list[str] | None, typer.Option(help="NAME=LOW:HIGH, inclusive.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep the answer on disk.")] = False,
) -> None:
    """Print solutions of integer constraints, one JSON object a line; exit code 3 if there is none."""
    from flambeau.ops.constrint import solve

    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text(encoding="utf-8")
        order = [_pair(p, "--prefer", "NAME=largest") for p in prefer or []]
        limits = {}
        for name, limit in (_pair(b, "--bounds", "NAME=LOW:HIGH") for b in bounds or []):
            low, _, high = limit.partition(":")
            if not (low.isdigit() and high.isdigit()):
                raise ValueError(f"--bounds {name}={limit}: expected NAME=LOW:HIGH")
            limits[name] = int(low), int(high)
        solutions = solve(text, prefer=order, n=n or None, bounds=limits, cache=cache)
    except (ValueError, OSError) as error:
        typer.echo(f"{file}: {error}", err=True)
        raise typer.Exit(2) from None
    for solution in solutions:
        typer.echo(json.dumps(solution))
    if not solutions:
        typer.echo("no solution", err=True)
        raise typer.Exit(3)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{option} {text}: expected {form}")
    return name, value

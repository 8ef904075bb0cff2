"""The ``flambeau`` command. Thin: every command calls a part that can be imported. Torch is imported only to run."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flambeau import __version__
from flambeau.app.constrint import constrint
from flambeau.app.study import study_app
from flambeau.papers.catalog import catalog, describe, find, load

app = typer.Typer(
    help="Published PyTorch systems: run them, mix them, and see each claim measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study_app, name="study")
app.command()(constrint)


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CLAIM_FAILED = 3


Config = Annotated[
    Path | None,
    typer.Option(help="Saved parameters (config.json of a run, best.json of a search) in place of a preset's."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the parameters that `flambeau show KEY` lists."),
]
Preset = Annotated[
    str, typer.Option(help="smoke (seconds), cpu (two minutes on two cores) or paper (the paper's own sizes).")
]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.", min=0)]
Device = Annotated[str, typer.Option(help="A torch device: cpu, cuda, cuda:1.")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; at most two unless given.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else on stderr.")]


@app.command("list")
def list_papers(
    family: Annotated[str | None, typer.Option(help="Only papers of this family.")] = None,
    as_json: Json = False,
) -> None:
    """List the papers, and which of them run."""
    papers = list(catalog().values())
    families = sorted({paper.family for paper in papers})
    if family is not None:
        if family not in families:
            raise ValueError(f"unknown family {family!r}; there are {', '.join(families)}")
        papers = [paper for paper in papers if paper.family == family]
    if as_json:
        fields = ("key", "title", "authors", "year", "arxiv", "code", "family", "runs")
        print(json.dumps([{name: getattr(paper, name) for name in fields} for paper in papers], ensure_ascii=False))
        return
    width = max(len(paper.key) for paper in papers)
    for paper in sorted(papers, key=lambda paper: (paper.family, paper.key)):
        print(f"{'*' if paper.runs else ' '} {paper.key:<{width}}  {paper.family:<18}  {paper.title} ({paper.year})")
    print(
        f"\n{sum(paper.runs for paper in papers)} of {len(papers)} run (*): flambeau show KEY, flambeau run KEY",
        file=sys.stderr,
    )


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key of `flambeau list`.")], as_json: Json = False
) -> None:
    """Show a paper: its claims, the parameters that PATH=VALUE can change, and the last recorded figures."""
    from flambeau.app.results import recorded

    paper = find(key)
    description = describe(key) if paper.runs else None
    result = recorded(key)
    if as_json:
        shown: dict[str, Any] = {
            name: getattr(paper, name)
            for name in ("key", "title", "authors", "year", "arxiv", "code", "family", "runs")
        }
        if description:
            shown["claims"] = [
                {"name": c.name, "statement": c.statement, "paper": c.paper, "target": c.target}
                for c in description.claims
            ]
            shown["parameters"] = [
                dict(zip(("name", "type", "default"), parameter)) for parameter in description.parameters
            ]
            shown["presets"] = ["cpu", *description.presets]
            shown["result"] = result
        print(json.dumps(shown, ensure_ascii=False))
        return
    print(f"{paper.title}\n{paper.authors} ({paper.year})")
    print(f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else "", paper.code)
    if description is None:
        print("\nIts experiment is not part of this version yet.")
        return
    print(f"\n{description.summary}\n\n{description.documentation}\n\nClaims")
    for claim in description.claims:
        print(
            f"  {claim.name}: {claim.statement}"
            + (f" ({claim.target})" if claim.target else "")
            + (f"; paper: {claim.paper}" if claim.paper else "")
        )
    print("\nParameters")
    for name, annotation, default in description.parameters:
        print(f"  {name}: {annotation} = {default}")
    print(f"\nPresets: {', '.join(['cpu', *description.presets])}")
    if result:
        print(f"\nRecorded on {result['environment']['cpu']}, seeds {result['seeds']}")
        for claim in result["claims"]:
            print(f"  {claim['name']}: {claim['values']} {claim['unit']} {_verdict(claim['holds'])}")


@app.command()
def run(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key of `flambeau list`.")],
    overrides: Overrides = None,
    preset: Preset = "cpu",
    config: Config = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder, runs/KEY/<time> unless given. An unfinished run of the same parameters goes on."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of the same parameters.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a paper's experiment and measure its claims.

    PATH=VALUE changes a parameter of `flambeau show KEY`: window=8, training.steps=500, data=load.csv, or a part, such
    as training.schedule="WarmupCosine(warmup=100)". The exit code is 0 if every measured claim holds, 3 if one does
    not, 2 for a bad key, path, value or file, and 1 if the run broke.

    torchrun --nproc_per_node 2 -m flambeau run KEY training.parallel="cp2" spreads its trainings over processes: axes
    are dp, fsdp, cp and tp.
    """
    experiment = load(key)
    from flambeau.app.report import write_report
    from flambeau.experiment.runner import all_hold, contract, run_experiment, unfinished
    from flambeau.training.progress import ConsoleProgress

    tree = experiment.tree(preset, overrides or [], config)
    runs = Path("runs") / key
    folder = out or _fresh(runs)
    if out is None:
        left = unfinished(runs, experiment, tree, preset, seed)
        if resume and left is None:
            raise ValueError(f"no unfinished run of these parameters in {runs}")
        if resume and left is not None:
            folder = left
        elif left is not None:
            print(f"An unfinished run of these parameters is in {left}; --resume goes on with it.", file=sys.stderr)
    first = os.environ.get("RANK", "0") == "0"
    progress = ConsoleProgress() if first else None
    result = run_experiment(
        experiment, out=folder, tree=tree, preset=preset, seed=seed, device=device, threads=threads, progress=progress
    )
    if not first:
        leave(Exit.OK)
    report = write_report(find(key), folder)
    result["artifacts"].append(str(report))
    if as_json:
        print(json.dumps(contract(result), ensure_ascii=False))
    else:
        print_claims(result)
        print(f"\nReport: {report}")
    leave(Exit.OK if all_hold(result) else Exit.CLAIM_FAILED)


def leave(code: Exit) -> None:
    """End the command. A process of a group ends at once: gloo's threads can abort an interpreter that winds down."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        raise typer.Exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fresh(runs: Path) -> Path:
    """A folder named by the time, that is not there yet."""
    folder = runs / time.strftime("%Y-%m-%d_%H-%M-%S")
    while folder.exists():
        folder = folder.with_name(folder.name + "+")
    return folder


@app.command()
def search(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key of `flambeau list`.")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="Candidates to run.", min=1)] = 20,
    algorithm: Annotated[
        str, typer.Option(help="For example RegularizedEvolution(population=10, tournament=3).")
    ] = "Random()",
    metric: Annotated[
        str | None, typer.Option(help="Claim to improve; the first with a threshold unless given.")
    ] = None,
    preset: Preset = "cpu",
    seed: Seed = 0,
    device: Device = "cpu",
    backend: Annotated[str, typer.Option(help="inline, process or ray.")] = "inline",
    workers: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; an unfinished one goes on.")] = None,
) -> None:
    """Let an algorithm choose parameters: write oneof([...]), floatv(lo, hi), intv(lo, hi) in place of values.

    For example: flambeau search prototype_reasoning "prototypes=oneof([10, 15, 20])" --trials 6. Each trial is a run;
    the best parameters are written to best.json, for `flambeau run KEY --config best.json`.
    """
    experiment = load(key)
    from flambeau.app.search import metric_of, search_experiment
    from flambeau.training.progress import ConsoleProgress

    name, sign = metric_of(experiment, metric)
    folder = out or _fresh(Path("searches") / key)
    study = search_experiment(
        experiment, tree=experiment.tree(preset, overrides or []), trials=trials, algorithm=algorithm, folder=folder,
        metric=name, preset=preset, seed=seed, device=device, backend=backend, workers=workers,
        progress=ConsoleProgress(),
    )  # fmt: skip
    done = sorted((t for t in study.trials() if t.reward is not None), key=lambda t: t.reward, reverse=True)  # type: ignore[arg-type, return-value]
    for trial in done[:5]:
        print(f"{name} {_figure(sign * trial.reward)}  trial {trial.id}  {trial.dna}")  # type: ignore[operator]
    print(f"\n{len(done)} of {study.count()} trials measured; study {folder / 'study.db'}")
    if done:
        print(f"Best parameters: flambeau run {key} --preset {preset} --config {folder / 'best.json'}")


@app.command()
def record(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key of `flambeau list`.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    preset: Preset = "cpu",
    device: Device = "cpu",
    threads: Threads = None,
    results: Annotated[Path, typer.Option(help="Folder of the recorded results.")] = Path("results"),
) -> None:
    """Run a paper over several seeds and record the figures that the board and the documentation show."""
    from flambeau.app.report import write_report
    from flambeau.app.results import write_record
    from flambeau.experiment.runner import run_experiment
    from flambeau.training.progress import ConsoleProgress

    experiment = load(key)
    try:
        chosen = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds must be whole numbers separated by commas, got {seeds!r}") from None
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    outcomes = []
    for seed in chosen:
        folder = Path("runs") / key / f"{stamp}_seed{seed}"
        outcomes.append(
            run_experiment(
                experiment, out=folder, preset=preset, overrides=overrides or [], seed=seed, device=device,
                threads=threads, progress=ConsoleProgress(),
            )
        )  # fmt: skip
        write_report(find(key), folder)
        print(f"seed {seed}, {outcomes[-1]['seconds']:.0f} s")
        print_claims(outcomes[-1])
    print(f"Recorded in {write_record(key, outcomes, Path('runs') / key / f'{stamp}_seed{chosen[0]}', results)}")


def print_claims(result: dict[str, Any]) -> None:
    """The claims table of a run: ours, baseline, paper, holds? What was not judged is explained below it."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = f"{result['paper']} (preset {result['preset']}, seed {result['seed']})"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("claim", min_width=20, ratio=3)
    table.add_column("holds?", no_wrap=True)
    for heading in ("ours", "baseline", "value"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("target", max_width=12)
    table.add_column("paper", ratio=1)
    reasons: dict[str, list[str]] = {}
    for claim in result["claims"]:
        figures = (_figure(claim[name]) for name in ("ours", "baseline", "value"))
        target = claim["target"] or claim["unit"]
        table.add_row(claim["statement"], _verdict(claim["holds"]), *figures, target, claim["paper"])
        if claim.get("why"):
            reasons.setdefault(claim["why"], []).append(claim["name"])
    console = Console()
    console.print(table)
    for why, names in reasons.items():
        console.print(f"Not judged: {', '.join(names) if len(names) < len(result['claims']) else 'all'}: {why}.")
    for note in result.get("notes", []):
        console.print(f"- {note}", markup=False)
    machine = result["environment"]
    threads = f"{machine['isa']}, {machine['threads']} threads, torch {machine['torch']}"
    console.print(f"{machine['cpu']}, {threads}, {result['seconds']:.0f} s", markup=False)


def _verdict(holds: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[holds]


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="All of them unless given.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each way; the best counts.", min=1)] = 7,
    threads: Annotated[int, typer.Option(help="Processor threads.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Time the ops against what a user would otherwise call, in one interleaved run, beside the machine's floor."""
    from flambeau.ops.bench import bench as measure

    rows = measure(ops or [], repeats=repeats, threads=threads)
    if as_json:
        print(json.dumps(rows))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{rows[0]['isa']}, {threads} threads, milliseconds", title_justify="left", box=SIMPLE)
    for name in ("op", "case", "computed by"):
        table.add_column(name)
    for name in ("cpu_ms", "wall_ms", "ratio", "floor_ms"):
        table.add_column(name.removesuffix("_ms"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_figure(value) for name, value in row.items() if name not in ("isa", "threads")))
    Console().print(table)


@app.command()
def board(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Serve the papers page on this machine: search, read, run, and watch a run."""
    uvicorn = _extra("uvicorn", "serve")
    from flambeau.app.board import Board

    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", file=sys.stderr)
    uvicorn.run(Board(runs).app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine, what is missing, and how to get it."""
    from flambeau.app.doctor import checks

    found = checks()
    if as_json:
        print(json.dumps([vars(check) for check in found]))
        return
    for check in found:
        print(
            f"{'ok     ' if check.works else 'missing'}  {check.name:<13} {check.found}"
            + ("" if check.works else f"\n{'':24}{check.fix}")
        )


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f"this needs the extra {extra!r}: pip install 'flambeau[{extra}]'") from None


def main() -> None:
    """Entry point: errors of the user's making are one clear line and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError, IsADirectoryError, ModuleNotFoundError) as error:
        print(f"flambeau: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except KeyboardInterrupt:
        print("flambeau: interrupted; the same command with --resume goes on", file=sys.stderr)
        sys.exit(Exit.FAILED)

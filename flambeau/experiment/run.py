"""What an experiment's function is given: its seed, device, folder and progress, and where to put what it finds."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flambeau.experiment.claims import Outcome, judge, unmeasured
from flambeau.experiment.definition import Experiment
from flambeau.files import write_bytes
from flambeau.training.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """One execution of an experiment.

    Attributes:
        seed: derive every generator from it.
        device: where the models live.
        preset: ``"cpu"``, ``"smoke"`` or ``"paper"``.
        folder: the run folder; pass ``folder / "train" / name`` to ``Trainer.fit`` so that an interrupted run goes on.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        seed: int = 0,
        preset: str = "cpu",
        device: str = "cpu",
        progress: Progress | None = None,
    ):
        self.seed, self.preset, self.folder, self.device = seed, preset, Path(folder), torch.device(device)
        self.outcomes: dict[str, Outcome] = {}
        self.figures: dict[str, Path] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.notes: list[str] = []
        self._claims = {claim.name: claim for claim in experiment.claims}
        self._shown = progress
        self.folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (self.folder / "metrics.jsonl").open("w", encoding="utf-8")
        self._events = (self.folder / "progress.jsonl").open("w", encoding="utf-8")

    def measure(self, name: str, *, value: float, ours: Any = None, baseline: Any = None) -> None:
        """Record the measured `value` of the claim `name`, with our figure and the baseline's that it was made from.

        Raises:
            ValueError: the experiment declares no such claim, or it was measured before.
        """
        self._record(
            name, judge(self._claim(name), ours=ours, baseline=baseline, value=value, judged=self.preset != "smoke")
        )

    def unmeasured(self, name: str, why: str) -> None:
        """Record that this run cannot measure the claim `name`, and why."""
        self._record(name, unmeasured(self._claim(name), why))

    def figure(self, name: str, figure: Figure) -> None:
        """Save a matplotlib figure as ``figures/NAME.png``; the first is the paper's picture on the board."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110, bbox_inches="tight")
        path = self.folder / "figures" / f"{name}.png"
        write_bytes(path, content.getvalue())
        self.figures[name] = path

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show `rows`, dictionaries with equal keys, as a table of the report."""
        self.tables[name] = [{key: _plain(value) for key, value in row.items()} for row in rows]

    def note(self, sentence: str) -> None:
        """Add a sentence to the report."""
        self.notes.append(sentence)

    def log(self, step: int, **values: float) -> None:
        """Append a line to ``metrics.jsonl``."""
        self._metrics.write(json.dumps({"step": step} | {name: _plain(value) for name, value in values.items()}) + "\n")
        self._metrics.flush()

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[_Task]:
        """A stage of the run with `total` steps: shown to the user, and followed by the board."""
        if self._shown is None:
            yield _Task(self._event, description, total, None)
        else:
            with self._shown(description, total) as shown:
                yield _Task(self._event, description, total, shown)

    def close(self) -> list[Outcome]:
        """Close the run's files. Returns the outcome of every claim, in the order of declaration."""
        self._metrics.close()
        self._events.close()
        missing = {name: claim for name, claim in self._claims.items() if name not in self.outcomes}
        for name, claim in missing.items():
            self.unmeasured(
                name, f"not measured here: needs {claim.needs}" if claim.needs else "not measured by this run"
            )
        return [self.outcomes[name] for name in self._claims]

    def _claim(self, name: str):
        if name not in self._claims:
            raise ValueError(f"no claim {name!r} is declared; there are {', '.join(self._claims)}")
        return self._claims[name]

    def _record(self, name: str, outcome: Outcome) -> None:
        if name in self.outcomes:
            raise ValueError(f"claim {name!r} was measured before")
        self.outcomes[name] = outcome

    def _event(self, event: dict[str, Any]) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()


class _Task:
    """The stage under way; events are thinned to five a second, so that a fast loop is not slowed by its display."""

    def __init__(self, write: Callable[[dict[str, Any]], None], description: str, total: int, shown: Any):
        self._write, self._description, self._total, self._shown = write, description, total, shown
        self._done, self._written = 0, 0.0
        self._write({"stage": description, "done": 0, "total": total})

    def advance(self, n: int = 1, **values: float) -> None:
        self._done += n
        if self._shown is not None:
            self._shown.advance(n, **values)
        now = time.monotonic()
        if now - self._written >= 0.2 or self._done == self._total:
            self._written = now
            shown = {name: _plain(value) for name, value in values.items()}
            self._write({"stage": self._description, "done": self._done, "total": self._total, **shown})


def _plain(value: Any) -> Any:
    """A JSON value: scalars of numpy and torch become Python's, NaN and infinity become null."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, (bool, int, float)) else str(value)

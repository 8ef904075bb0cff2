"""Progress on the terminal: a bar with rate and remaining time, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Advance(Protocol):
    """What a progress context yields."""

    def advance(self, n: int = 1, **values: float) -> None:
        """`n` more steps are done; `values` are the latest figures to show, for example ``loss=0.3``."""


Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""``progress(description, total)``: a context manager whose value has ``advance``."""


class ConsoleProgress:
    """``progress(description, total)`` on stderr. Bars may be nested; each shows its rate and remaining time.

    Args:
        stream: where to write; stderr by default, so that stdout stays free for results.
        every: seconds between plain lines where the stream is no terminal.
    """

    def __init__(self, stream: IO[str] | None = None, every: float = 10.0):
        self.console = Console(file=stream or sys.stderr)
        self.every = every
        self._bars: RichProgress | None = None
        self._open = 0

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            lines = _Lines(self.console.file, description, total, self.every)
            try:
                yield lines
            finally:
                lines.close()
            return
        if self._bars is None:
            self._bars = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[values]}"),
                console=self.console,
                refresh_per_second=8,
            )
            self._bars.start()
        self._open += 1
        bar = _Bar(self._bars, description, total)
        try:
            yield bar
        finally:
            bar.close()
            self._open -= 1
            if not self._open:
                self._bars.stop()
                self._bars = None


class _Meter:
    """Counts steps cheaply and says when the display is due: redrawing at every step would cost more than the step."""

    def __init__(self, total: int, every: float):
        self.total = total
        self.every = every
        self.done = 0
        self.values: dict[str, float] = {}
        self._first: tuple[float, int] | None = None  # when the first step ended: loading and compiling come before it
        self._shown = time.perf_counter()

    def advance(self, n: int = 1, **values: float) -> None:
        self.done += n
        if values:
            self.values = values
        now = time.perf_counter()
        if self._first is None:
            self._first = (now, self.done)
        if now - self._shown >= self.every:
            self._shown = now
            self.show()

    def show(self) -> None:
        raise NotImplementedError

    def rate(self) -> str:
        """For example ``35.2/s, 0:25 left``; empty until it can be told."""
        if self._first is None or self.done <= self._first[1]:
            return ""
        seconds = max(time.perf_counter() - self._first[0], 1e-9)
        rate = (self.done - self._first[1]) / seconds
        speed = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
        return f"{speed}, {clock((self.total - self.done) / rate)} left" if self.done < self.total else speed

    def figures(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.values.items())


class _Bar(_Meter):
    def __init__(self, bars: RichProgress, description: str, total: int):
        super().__init__(total, every=0.1)
        self.bars = bars
        self.task: TaskID = bars.add_task(description, total=total, rate="", values="")

    def show(self) -> None:
        self.bars.update(self.task, completed=self.done, rate=self.rate(), values=self.figures())

    def close(self) -> None:
        self.show()


class _Lines(_Meter):
    def __init__(self, stream: IO[str], description: str, total: int, every: float):
        super().__init__(total, every)
        self.stream = stream
        self.description = description

    def show(self) -> None:
        share = 100 * self.done // self.total if self.total else 100
        parts = [f"{self.description} {self.done}/{self.total} ({share}%)", self.rate(), self.figures()]
        print("  ".join(part for part in parts if part), file=self.stream, flush=True)

    def close(self) -> None:
        self.show()


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

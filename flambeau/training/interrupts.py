"""Stopping between two steps on SIGINT or SIGTERM, so that a training can save what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A training was stopped by a signal after a whole step, and saved if it has a folder."""


class Interrupts:
    """Whether a signal has asked to stop: `caught` is its name, or None."""

    caught: str | None = None


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Catch the first SIGINT or SIGTERM inside; a second one acts at once, as outside.

    Signals reach the main thread only; in another thread nothing is caught.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def catch(number: int, frame: object) -> None:
        interrupts.caught = signal.Signals(number).name
        restore()

    for number in before:
        signal.signal(number, catch)
    try:
        yield interrupts
    finally:
        restore()

"""The store of searches: studies and their trials in one SQLite file that outlives any process.

Any number of processes of one machine may work on one file (see `flambeau.search.store`).
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flambeau.files import write_bytes
from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.store import Kind, Store, StoreError, open_store, sqlite_errors
from flambeau.symbolic import DNA

SCHEMA = """
CREATE TABLE study (
    name TEXT PRIMARY KEY, created REAL, seed INTEGER, spec TEXT, batch INTEGER, algorithm TEXT, state TEXT,
    version INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT 'open', metadata TEXT NOT NULL DEFAULT '{}');
CREATE TABLE trial (
    study TEXT, id INTEGER, dna TEXT NOT NULL, state TEXT NOT NULL, reward TEXT, fed INTEGER NOT NULL DEFAULT 0,
    measurements TEXT NOT NULL DEFAULT '[]', metadata TEXT NOT NULL DEFAULT '{}', seed INTEGER NOT NULL DEFAULT 0,
    owner TEXT, lease REAL, attempts INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (study, id));
CREATE INDEX unfed ON trial (study, id) WHERE fed = 0;
"""


class StudyError(StoreError):
    """A study file that cannot be read, is not one, or does not fit what is asked of it."""


STUDY = Kind("study", 0x464C4D42, 1, SCHEMA, StudyError)  # "FLMB"


class RaceConditionError(RuntimeError):
    """Feedback on a trial that is finished, or that another worker holds by now."""


class Measurement(NamedTuple):
    """The reward of a trial so far (a number, or a tuple of them), at a step of its evaluation."""

    step: int
    reward: Any
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Trial:
    """One proposed point and what became of it.

    state: "running", "waiting" (to be handed out again), "done", "skipped" (infeasible), or "lost" (its worker died
    every time). reward: a number, or a tuple of them for several objectives; higher is better; None unless done.
    seed: for all randomness of the evaluation. attempts: workers it was handed to, but for those that handed it back.
    """

    id: int
    dna: DNA
    state: str
    reward: Any
    measurements: tuple[Measurement, ...]
    metadata: dict[str, Any]
    seed: int
    attempts: int

    @property
    def finished(self) -> bool:
        return self.state not in ("running", "waiting")

    @property
    def cached(self) -> bool:
        """Whether its reward came from a FunctionalCache, without an evaluation."""
        return bool(self.metadata.get("cached"))


class Study:
    """The study `name` in the file `path`; without a path in memory, for this process only.

    The file and the study are made when missing, unless `create` is False. A file that is damaged, is not SQLite, or
    belongs to another program raises StudyError and is left untouched.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, name: str = "main", *, create: bool = True) -> None:
        if not name:
            raise ValueError("name: expected a study name, got ''")
        self.path, self.name = None if path is None else Path(path), name
        self.live: Algorithm | None = None  # in memory: the algorithm that holds the state of the search
        self._store = Store(self.path, STUDY, create)
        with self.transaction() as db:
            known = [name for (name,) in db.execute("SELECT name FROM study ORDER BY created")]
            if name not in known:
                if not create:
                    raise StudyError(f"{self.path}: no study {name!r}; it holds {known}")
                db.execute("INSERT INTO study (name, created) VALUES (?, ?)", (name, time.time()))

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Everything inside happens at once or not at all, in this and every other process. Nested: one transaction."""
        return self._store.transaction()

    def trials(self) -> list[Trial]:
        """All trials, by id."""
        with self.transaction() as db:
            return [self._trial(row) for row in db.execute(f"{SELECT} WHERE study = ? ORDER BY id", (self.name,))]

    def trial(self, id: int) -> Trial:
        """One trial. Unknown id: StudyError."""
        with self.transaction() as db:
            row = db.execute(f"{SELECT} WHERE study = ? AND id = ?", (self.name, id)).fetchone()
        if row is None:
            raise StudyError(f"study {self.name!r}: no trial {id}")
        return self._trial(row)

    def add(self, dna: DNA, reward: Reward | None, metadata: dict[str, Any] | None = None) -> int:
        """Store a result that was found elsewhere (None: infeasible), and return its trial id."""
        with self.transaction() as db:
            id = self.count()
            state = "skipped" if reward is None else "done"
            db.execute(
                "INSERT INTO trial (study, id, dna, state, reward, metadata, fed) VALUES (?, ?, ?, ?, ?, ?, 1)",
                (self.name, id, dumps(dna.to_json()), state, dumps(reward), dumps(metadata or {})),
            )
            db.execute("UPDATE study SET version = version + 1, state = NULL WHERE name = ?", (self.name,))
            self.live = None
            return id

    def count(self) -> int:
        """How many trials there are."""
        with self.transaction() as db:
            return db.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM trial WHERE study = ?", (self.name,)).fetchone()[0]

    def finished(self) -> int:
        """How many trials are finished."""
        query = "SELECT COUNT(*) FROM trial WHERE study = ? AND state NOT IN ('running', 'waiting')"
        with self.transaction() as db:
            return db.execute(query, (self.name,)).fetchone()[0]

    def best(self) -> Trial | None:
        """The finished trial of the highest reward (the first of equals); None before there is one."""
        done = [trial for trial in self.trials() if trial.reward is not None]
        if any(isinstance(trial.reward, tuple) for trial in done):
            raise StudyError(f"study {self.name!r} has several objectives: ask for front(), not best()")
        return max(done, key=lambda trial: trial.reward, default=None)

    def front(self) -> list[Trial]:
        """The finished trials whose reward tuples no other trial dominates."""
        done = [trial for trial in self.trials() if isinstance(trial.reward, tuple)]
        return [t for t in done if not any(dominates(other.reward, t.reward) for other in done)]

    @property
    def metadata(self) -> dict[str, Any]:
        """JSON kept with the study; assign a new dict to change it."""
        return json.loads(self._column("metadata"))

    @metadata.setter
    def metadata(self, value: dict[str, Any]) -> None:
        with self.transaction() as db:
            db.execute("UPDATE study SET metadata = ? WHERE name = ?", (dumps(value), self.name))

    @property
    def status(self) -> str:
        """ "open"; "exhausted": the algorithm has nothing left to propose; "ended": nothing more is handed out."""
        return self._column("status")

    @status.setter
    def status(self, value: str) -> None:
        if value not in ("open", "exhausted", "ended"):
            raise ValueError(f"status: expected open, exhausted or ended, got {value!r}")
        with self.transaction() as db:
            db.execute("UPDATE study SET status = ? WHERE name = ?", (value, self.name))

    def export(self, target: str | os.PathLike[str]) -> None:
        """Write the trials as a table (.csv) or as JSON (.json), whole or not at all."""
        target = Path(target)
        if target.suffix not in (".csv", ".json"):
            raise ValueError(f"target: expected a name that ends in .csv or .json, got {str(target)!r}")
        text = io.StringIO(newline="")
        if target.suffix == ".json":
            trials = [as_json(trial) for trial in self.trials()]
            json.dump({"study": self.name, "metadata": self.metadata, "trials": trials}, text, indent=1)
        else:
            write_csv(self.trials(), text)
        write_bytes(target, text.getvalue().encode())

    def in_memory(self) -> Study:
        """A copy that needs no file."""
        copy = Study(None, self.name)
        self._store.connection.backup(copy._store.connection)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError("a study in memory cannot go to another process; give it a path")
        return Study, (self.path, self.name)

    def _column(self, name: str) -> Any:
        with self.transaction() as db:
            return db.execute(f"SELECT {name} FROM study WHERE name = ?", (self.name,)).fetchone()[0]

    def _trial(self, row: Sequence[Any]) -> Trial:
        id, dna, state, reward, measurements, metadata, seed, attempts = row
        try:
            return Trial(
                id=id,
                dna=DNA.from_json(json.loads(dna)),
                state=state,
                reward=as_reward(json.loads(reward or "null")),
                measurements=tuple(Measurement(s, as_reward(r), m) for s, r, m in json.loads(measurements)),
                metadata=json.loads(metadata),
                seed=seed,
                attempts=attempts,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(f"{self.path}: trial {id} of study {self.name!r} is damaged: {error}") from error


SELECT = "SELECT id, dna, state, reward, measurements, metadata, seed, attempts FROM trial"


def studies(path: str | os.PathLike[str]) -> list[Study]:
    """The studies in a file, oldest first."""
    connection = open_store(Path(path), STUDY, create=False)
    with sqlite_errors(path, STUDY):
        names = [name for (name,) in connection.execute("SELECT name FROM study ORDER BY created")]
    connection.close()
    return [Study(path, name, create=False) for name in names]


def dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise type(error)(f"expected numbers, text, lists and dicts that JSON has, got {value!r}: {error}") from None


def as_reward(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def as_json(trial: Trial) -> dict[str, Any]:
    """A trial as a JSON object."""
    measurements = [measurement._asdict() for measurement in trial.measurements]
    return {**vars(trial), "dna": trial.dna.to_json(), "measurements": measurements}


def write_csv(trials: Sequence[Trial], file: Any) -> None:
    """One row a trial; several objectives are reward.0, reward.1, ...; metadata and DNA are JSON text."""
    width = max((len(trial.reward) for trial in trials if isinstance(trial.reward, tuple)), default=0)
    rewards = [f"reward.{i}" for i in range(width)] or ["reward"]
    writer = csv.writer(file)
    writer.writerow(["id", "state", *rewards, "seed", "attempts", "measurements", "metadata", "dna"])
    for trial in trials:
        reward = trial.reward if isinstance(trial.reward, tuple) else [trial.reward] + [None] * (len(rewards) - 1)
        rest = (trial.seed, trial.attempts, len(trial.measurements), dumps(trial.metadata), dumps(trial.dna.to_json()))
        writer.writerow([trial.id, trial.state, *reward, *rest])


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better (Pareto)."""
    return a != b and all(x >= y for x, y in zip(a, b))

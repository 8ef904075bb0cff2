"""Hands trials to workers and results to the algorithm; each call is one transaction on the study.

All state lives in the study, so any number of coordinators (one a process) may serve one study file, and any of them
may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.study import RaceConditionError, Study, StudyError, Trial, as_reward, dumps
from flambeau.symbolic import DNA, Spec

MAX_ATTEMPTS = 5  # a trial whose worker died this often is lost: it would take every worker down in turn

EarlyStopping = Callable[[Trial, Sequence[Trial]], bool]


class Turn(Enum):
    """What `Coordinator.acquire` answers when it has no trial."""

    WAIT = "others are still busy: ask again"
    END = "nothing is left to do"


class Coordinator:
    """Serves the trials of `study` over the space `spec`, proposed by `algorithm`, until there are `n` (None: no end).

    `batch`: None feeds a result to the algorithm at once. A number makes the outcome independent of the number and
    speed of the workers: `batch` trials are proposed, and when all of them are finished their results are fed back in
    the order of their ids. `early_stopping` then sees only trials of earlier batches.
    `lease`: seconds without a sign of life after which a worker elsewhere counts as dead; of one on this machine it is
    known (on Linux).
    """

    def __init__(
        self,
        study: Study,
        spec: Spec,
        algorithm: Algorithm,
        *,
        n: int | None = None,
        seed: int = 0,
        batch: int | None = None,
        early_stopping: EarlyStopping | None = None,
        skip_infeasible: bool = False,
        lease: float = 60.0,
    ) -> None:
        if n is not None and n < 1:
            raise ValueError(f"n: expected at least 1 trial, got {n}")
        if batch is not None and batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        if early_stopping is not None and algorithm.multi_objective:
            raise ValueError("early_stopping: policies compare single rewards; the algorithm has several objectives")
        self.study, self.spec, self.algorithm, self.n = study, spec, algorithm, n
        self.seed, self.batch, self.early_stopping = seed, batch, early_stopping
        self.skip_infeasible, self.lease = skip_infeasible, lease
        self.version: int | None = None  # of the study that the algorithm's state belongs to
        wanted = {"spec": spec.digest(), "seed": seed, "batch": batch}
        with study.transaction() as db:
            row = db.execute("SELECT spec, seed, batch FROM study WHERE name = ?", (study.name,)).fetchone()
            if row[0] is None:
                columns = (*wanted.values(), study.name)
                db.execute("UPDATE study SET spec = ?, seed = ?, batch = ? WHERE name = ?", columns)
                row = tuple(wanted.values())
        for (key, value), stored in zip(wanted.items(), row):
            if value != stored:
                what = "was made for another space" if key == "spec" else f"has {key} {stored}, not {value}"
                raise StudyError(f"study {study.name!r} {what}: continue it with the same one, or name another study")

    def acquire(self, owner: str) -> Trial | Turn:
        """The unfinished trial of `owner`; else one whose worker is gone; else a new one."""
        with self.study.transaction() as db:
            status, name = self.study.status, self.study.name
            if status == "ended":
                return Turn.END
            rows = db.execute(
                "SELECT id, state, owner, lease, attempts FROM trial "
                "WHERE study = ? AND fed = 0 AND state IN ('running', 'waiting') ORDER BY id",
                (name,),
            ).fetchall()
            for id, _, holder, _, attempts in rows:
                if holder == owner:
                    return self._grant(id, owner, attempts)
            for id, state, holder, lease, attempts in rows:
                if state == "waiting":
                    return self._grant(id, owner, attempts)
                if is_gone(holder, lease):
                    if attempts < MAX_ATTEMPTS:
                        return self._grant(id, owner, attempts + 1)
                    self._finish(id, "lost", None, {"error": f"its worker died {attempts} times"})
                    return self.acquire(owner)
            id = self.study.count()
            if status == "exhausted" or (self.n is not None and id >= self.n):
                return Turn.WAIT if rows else Turn.END
            if self.batch and id % self.batch == 0 and rows:
                return Turn.WAIT
            with self._current_algorithm():
                try:
                    dna = self.algorithm.propose()
                except StopIteration:
                    self.study.status = "exhausted"
                    return Turn.WAIT if rows else Turn.END
            db.execute(
                "INSERT INTO trial (study, id, dna, state, seed) VALUES (?, ?, ?, 'waiting', ?)",
                (name, id, dumps(dna.to_json()), trial_seed(self.seed, id)),
            )
            return self._grant(id, owner, 1)

    def measure(self, owner: str, id: int, step: int, reward: Reward, metrics: dict[str, float | None]) -> None:
        """Store a measurement; it replaces those at its own and later steps (of an attempt that broke off)."""
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        if not is_finite(reward):
            raise ValueError(f"reward: expected finite numbers, got {reward!r}; skip() a trial that diverged")
        with self.study.transaction() as db:
            kept = [list(m) for m in self._held(owner, id).measurements if m.step < step]
            columns = (dumps([*kept, [step, reward, metrics]]), self.study.name, id)
            db.execute("UPDATE trial SET measurements = ? WHERE study = ? AND id = ?", columns)

    def should_stop(self, owner: str, id: int) -> bool:
        """Whether the early stopping policy gives up on the trial, which needs a measurement."""
        trial = self._held(owner, id)
        if self.early_stopping is None or not trial.measurements:
            return False
        end = id // self.batch * self.batch if self.batch else self.study.count()
        return self.early_stopping(trial, [other for other in self.study.trials() if other.id < end and other.id != id])

    def done(self, owner: str, id: int, metadata: dict[str, Any]) -> None:
        """Finish a trial with the reward of its last measurement."""
        with self.study.transaction():
            measurements = self._held(owner, id).measurements
            if not measurements:
                raise ValueError(f"trial {id}: done() needs a measurement; add one, or give the reward to feedback()")
            self.complete(owner, id, measurements[-1].reward, metadata)

    def complete(self, owner: str, id: int, reward: Reward | None, metadata: dict[str, Any]) -> None:
        """Finish a trial with its reward, or as infeasible (None)."""
        with self.study.transaction():
            self._held(owner, id)
            if reward is not None and not is_finite(reward):
                if not self.skip_infeasible:
                    hint = 'skip() the trial, or ask for infeasible="skip"'
                    raise ValueError(f"reward: expected finite numbers, got {reward!r}; {hint}")
                reward, metadata = None, {**metadata, "reason": f"reward {reward!r}"}
            several = isinstance(reward, tuple)
            if reward is not None and self.algorithm.needs_feedback and several != self.algorithm.multi_objective:
                expected = "a tuple, one number an objective" if self.algorithm.multi_objective else "one number"
                raise ValueError(f"reward: {type(self.algorithm).__name__} expects {expected}, got {reward!r}")
            self._finish(id, "skipped" if reward is None else "done", reward, metadata)

    def heartbeat(self, owner: str) -> float:
        """A sign of life: prolong the lease, by as many seconds as are returned."""
        with self.study.transaction() as db:
            columns = (time.time() + self.lease, self.study.name, owner)
            db.execute("UPDATE trial SET lease = ? WHERE study = ? AND fed = 0 AND owner = ?", columns)
        return self.lease

    def release(self, owner: str, died: bool = False) -> None:
        """Let others have the unfinished trial of `owner`, who leaves it, or died over it."""
        change = "lease = 0" if died else "state = 'waiting', owner = NULL"
        with self.study.transaction() as db:
            condition = "study = ? AND fed = 0 AND owner = ? AND state = 'running'"
            db.execute(f"UPDATE trial SET {change} WHERE {condition}", (self.study.name, owner))

    def end(self) -> None:
        """Hand out nothing more, to any worker."""
        self.study.status = "ended"

    def _grant(self, id: int, owner: str, attempts: int) -> Trial:
        with self.study.transaction() as db:
            db.execute(
                "UPDATE trial SET state = 'running', owner = ?, lease = ?, attempts = ? WHERE study = ? AND id = ?",
                (owner, time.time() + self.lease, attempts, self.study.name, id),
            )
            return self.study.trial(id)

    def _held(self, owner: str, id: int) -> Trial:
        """The trial, if `owner` may still change it."""
        with self.study.transaction() as db:
            trial, query = self.study.trial(id), "SELECT owner FROM trial WHERE study = ? AND id = ?"
            (holder,) = db.execute(query, (self.study.name, id)).fetchone()
        if trial.finished:
            raise RaceConditionError(f"trial {id} of study {self.study.name!r} is finished already ({trial.state})")
        if holder not in (owner, None):
            raise RaceConditionError(f"trial {id} of study {self.study.name!r} was handed to another worker meanwhile")
        return trial

    def _finish(self, id: int, state: str, reward: Reward | None, metadata: dict[str, Any]) -> None:
        with self.study.transaction() as db:
            columns = (state, dumps(reward), dumps(metadata), self.study.name, id)
            db.execute("UPDATE trial SET state = ?, reward = ?, metadata = ? WHERE study = ? AND id = ?", columns)
            query = "SELECT id, state, dna, reward FROM trial WHERE study = ? AND fed = 0 ORDER BY id"
            rows = db.execute(query, (self.study.name,)).fetchall()
            finished = [row for row in rows if row[1] not in ("running", "waiting")]
            if self.batch and (len(finished) < len(rows) or self.study.count() % self.batch):
                return
            with self._current_algorithm():
                for _, _, dna, result in finished:
                    if json.loads(result) is not None:
                        self.algorithm.feedback(DNA.from_json(json.loads(dna)), as_reward(json.loads(result)))
            done = [(self.study.name, id) for id, *_ in finished]
            db.executemany("UPDATE trial SET fed = 1, owner = NULL WHERE study = ? AND id = ?", done)

    @contextmanager
    def _current_algorithm(self) -> Iterator[None]:
        """Bring the algorithm to the state of the study, and the study to the state it has afterwards."""
        study, own = self.study, type(self.algorithm).__name__
        with study.transaction() as db:
            query = "SELECT version, algorithm, state FROM study WHERE name = ?"
            version, name, state = db.execute(query, (study.name,)).fetchone()
            if version != self.version:
                if study.live is not None:
                    state = dumps(study.live.state_dict())
                self.algorithm.setup(self.spec, self.seed)
                if state is not None and name == own:
                    self.algorithm.load_state_dict(json.loads(state))
                elif study.count():
                    self.algorithm.recover(self._history())
            self.version = study.live = None  # unless the change goes through
            yield
            if study.path is None:
                study.live, state = self.algorithm, None  # its state is asked for when another takes over
            else:
                state = dumps(self.algorithm.state_dict())
            columns = (version + 1, own, state, study.name)
            db.execute("UPDATE study SET version = ?, algorithm = ?, state = ? WHERE name = ?", columns)
            self.version = version + 1

    def _history(self) -> list[tuple[DNA, Reward | None]]:
        """All proposals, with the rewards that were fed back."""
        query = "SELECT dna, CASE fed WHEN 1 THEN reward ELSE 'null' END FROM trial WHERE study = ? ORDER BY id"
        with self.study.transaction() as db:
            rows = db.execute(query, (self.study.name,))
            return [(DNA.from_json(json.loads(dna)), as_reward(json.loads(reward))) for dna, reward in rows]


def is_finite(reward: Reward) -> bool:
    return all(map(math.isfinite, reward if isinstance(reward, tuple) else (reward,)))


def trial_seed(seed: int, id: int) -> int:
    """31 bits that depend on the study's seed and the trial's id only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:4]) >> 1


def new_owner() -> str:
    """A name for a worker in this process, by which other processes of the machine can see whether it lives."""
    return f"{this_process(os.getpid())}|{uuid.uuid4().hex}"


@cache
def this_process(pid: int) -> str:
    """Machine, id and start of this process; its id is an argument because a fork is another process."""
    return f"{host()}|{pid}|{process_start(pid)}"


def is_gone(owner: str, lease: float) -> bool:
    """Whether a worker is dead: for processes of this machine that is known, of others the end of the lease tells."""
    parts = owner.split("|")
    if len(parts) == 4 and parts[0] == host() and parts[2]:
        return process_start(int(parts[1])) != parts[2]
    return lease < time.time()


@cache
def host() -> str:
    """Machine and, on Linux, process id namespace."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{os.readlink(namespace) if namespace.exists() else ''}"


def process_start(pid: int) -> str:
    """When a process was started, in clock ticks, to tell it from a later one of the same id; "" if gone or unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Leases(Protocol):
    """What gives work out for a limited time."""

    def heartbeat(self, owner: str) -> float:
        """Prolong the owner's leases; returns how long they last, in seconds."""
        ...


@contextmanager
def heartbeats(leases: Leases, owner: str) -> Iterator[None]:
    """Prolong the owner's leases from a thread, four times a lease."""
    interval = leases.heartbeat(owner) / 4
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(interval):
            leases.heartbeat(owner)

    thread = threading.Thread(target=beat, daemon=True)
    if math.isfinite(interval):
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()

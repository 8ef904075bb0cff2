"""Functional equivalence caching (FEC): candidates that compute the same are evaluated once.

After Real et al. 2020 ("AutoML-Zero") and google-research/unified_functional_hashing. A candidate's key comes from
`functional_hash` or any other function; the cache may wrap an evaluation, or stand inside a search:

cache = FunctionalCache(partial(functional_hash, probe=probe), store="fec.sqlite")
result = cache.evaluate(candidate, train_and_validate)
search(space, algorithm, train_and_validate, 500, backend="process", workers=4, cache=cache)
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flambeau.search.algorithm import Reward
from flambeau.search.coordinator import heartbeats, is_gone, new_owner
from flambeau.search.functional.key import RESERVED
from flambeau.search.store import Kind, Store, StoreError
from flambeau.search.study import as_reward, dumps
from flambeau.symbolic import SymbolicError, digest

STATISTICS = (
    "structural_hits", "misses", "partial_hits", "full_hits", "size", "evaluations", "waits", "forgotten",
    "hash_seconds", "seconds_saved",
)  # fmt: skip
SCHEMA = f"""
CREATE TABLE entry (
    task TEXT, key INTEGER, rewards TEXT NOT NULL, seconds REAL NOT NULL, hits INTEGER NOT NULL DEFAULT 0,
    used INTEGER NOT NULL, PRIMARY KEY (task, key));
CREATE INDEX recency ON entry (used);
CREATE TABLE flight (
    task TEXT, key INTEGER, owner TEXT NOT NULL, lease REAL NOT NULL, PRIMARY KEY (task, key));
CREATE TABLE statistic ({", ".join(f"{name} NOT NULL DEFAULT 0" for name in (*STATISTICS, "uses"))});
INSERT INTO statistic DEFAULT VALUES;
"""


class CacheError(StoreError):
    """A cache file that cannot be read, or is not one."""


CACHE = Kind("functional cache", 0x464C4643, 1, SCHEMA, CacheError)  # "FLFC"


class Result(NamedTuple):
    """What `FunctionalCache.evaluate` found.

    value: the reward, a mean if there were several evaluations; None: infeasible. cached: whether it came without an
    evaluation. n_evals: evaluations behind the value. key: the functional key.
    """

    value: Reward | None
    cached: bool
    n_evals: int
    key: int


class Found(NamedTuple):
    """What the ledger knows of a key: "full" (nothing to evaluate), "busy" (another evaluates it) or "evaluate"."""

    state: str
    rewards: list[Any]


class FunctionalCache:
    """Remembers rewards by what candidates compute, for one process or, in a file, for many.

    Two levels: a candidate whose structure was seen by this process before has its key without being hashed; the key
    then finds the reward. While one worker evaluates a key, others that come with it wait for its reward. A worker that
    dies leaves its key to the next one.

    With noisy evaluations a lucky value would stay forever. Two remedies: `max_evals` averages, `remove_prob` and
    `forget_every` let go of values.

    Args:
        hash_fn: from a candidate to its key (63 bits), for instance `partial(functional_hash, probe=probe)`; workers in
            other processes get it by pickle.
        max_evals: evaluations of a key whose mean is its value; until there are so many, a candidate that hits is
            evaluated too ("partial hit") and gets the mean so far.
        remove_prob: probability that a key is dropped after a full hit.
        capacity: most keys kept; the least recently used goes first.
        forget_every: drop a key at its hit of this number; 0 never.
        store: an SQLite file, shared by all processes of this machine that name it (and by Ray workers anywhere);
            None: in memory, for this process.
        task: what the reward depends on besides the candidate, such as data set and training budget. Keys of different
            tasks in one file have nothing to do with each other.
        structural: from a candidate to a value that is equal only for equal candidates, or to None, which is never
            equal. By default the digest of a symbolic value.
        seed: of the random removals.

    Raises:
        ValueError: an argument out of range, or (CacheError) a `store` that is no cache.
    """

    def __init__(
        self,
        hash_fn: Callable[[Any], int],
        *,
        max_evals: int = 1,
        remove_prob: float = 0.0,
        capacity: int = 1 << 20,
        forget_every: int = 0,
        store: str | os.PathLike[str] | None = None,
        task: str = "",
        structural: Callable[[Any], Hashable] | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(hash_fn):
            raise TypeError(f"hash_fn: expected a function from a candidate to its key, got {type(hash_fn).__name__}")
        self.hash_fn, self.structural, self.capacity = hash_fn, structural or symbolic_digest, capacity
        self.ledger = Ledger(store, task, max_evals, remove_prob, capacity, forget_every, seed)
        self._keys: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, candidate: Any) -> int:
        """The functional key: known from an equal candidate before, or hashed."""
        return self._key(candidate)[0]

    def _key(self, candidate: Any) -> tuple[int, dict[str, float]]:
        """The key, and what finding it adds to the statistics."""
        structure = self.structural(candidate)
        with self._lock:
            known = self._keys.get(structure) if structure is not None else None
            if known is not None:
                self._keys.move_to_end(structure)
        if known is not None:
            return known, {"structural_hits": 1}
        began = time.perf_counter()
        key = self.hash_fn(candidate)
        if not isinstance(key, int) or not 0 <= key < 1 << 63:
            raise ValueError(f"hash_fn: expected a whole number of at most 63 bits, got {key!r}")
        spent = time.perf_counter() - began
        if structure is not None:
            with self._lock:
                self._keys[structure] = key
                while len(self._keys) > self.capacity:
                    self._keys.popitem(last=False)
        return key, {"hash_seconds": spent}

    def evaluate(self, candidate: Any, full_eval: Callable[[Any], Any]) -> Result:
        """The reward of `candidate`: by `full_eval(candidate)`, None from which means infeasible, unless it is known.

        An exception of `full_eval` goes to the caller, and nothing is stored. But of candidates that already failed
        when they were hashed, the first of each kind of failure is evaluated, and infeasible if that fails too.
        """
        owner = new_owner()
        claim = self.claim(candidate, owner)
        if claim.cached is not None:
            return claim.cached
        with heartbeats(self.ledger, owner):
            try:
                reward = full_eval(candidate)
                reward = None if reward is None else numbers(reward)
            except BaseException as error:
                if claim.key >= RESERVED or not isinstance(error, Exception):
                    self.ledger.release(owner)
                    raise
                reward = None
            value, n_evals = claim.mean(reward)
            claim.finish(reward)
            return Result(value, False, n_evals, claim.key)

    def claim(self, candidate: Any, owner: str) -> Claim:
        """What is known of `candidate`, or the right (and duty) to evaluate it; waits for others who do."""
        (key, amounts), pause = self._key(candidate), 0.001
        while (found := self.ledger.begin(key, owner, **amounts)).state == "busy":
            time.sleep(pause)
            amounts, pause = {}, min(2 * pause, 0.2)
        return Claim(self.ledger, key, owner, found)

    def statistics(self) -> dict[str, float]:
        """Counts of look-ups since the store was made.

        structural_hits (keys without hashing), misses, partial_hits, full_hits, size (keys held), evaluations, waits,
        forgotten (dropped keys, for whatever reason), hash_seconds, seconds_saved (by full hits, before hashing).
        """
        return self.ledger.statistics()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_keys", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _keys=OrderedDict(), _lock=threading.Lock())


class Claim:
    """One candidate that is looked up: `cached`, the result if nothing is to evaluate, or one evaluation to report."""

    def __init__(self, ledger: Any, key: int, owner: str, found: Found) -> None:
        self.ledger, self.key, self.owner, self.earlier = ledger, key, owner, found.rewards
        full = found.state == "full"
        self.cached = Result(mean(found.rewards), True, len(found.rewards), key) if full else None
        self.began = time.perf_counter()

    def mean(self, reward: Reward | None) -> tuple[Reward | None, int]:
        """The value that this evaluation makes together with the earlier ones, and their number."""
        rewards = [*self.earlier, reward]
        return mean(rewards), len(rewards)

    def finish(self, reward: Reward | None) -> None:
        """Store the evaluation."""
        self.ledger.finish(self.key, self.owner, reward, time.perf_counter() - self.began)


class Ledger:
    """The rewards by key, and who evaluates which key; each call is one transaction. See FunctionalCache."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        task: str = "",
        max_evals: int = 1,
        remove_prob: float = 0.0,
        capacity: int = 1 << 20,
        forget_every: int = 0,
        seed: int = 0,
    ) -> None:
        if max_evals < 1:
            raise ValueError(f"max_evals: expected at least 1, got {max_evals}")
        if not 0 <= remove_prob <= 1:
            raise ValueError(f"remove_prob: expected 0..1, got {remove_prob}")
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        if forget_every < 0 or forget_every == 1:
            raise ValueError(f"forget_every: expected 0 (never) or at least 2, got {forget_every}")
        self.path = None if path is None else Path(path).absolute()
        self.task, self.max_evals, self.remove_prob = task, max_evals, remove_prob
        self.capacity, self.forget_every, self.seed = capacity, forget_every, seed
        self.store = Store(self.path, CACHE)
        # nobody else could take over a key of a cache in memory
        self.lease = math.inf if self.path is None else 60.0

    def begin(self, key: int, owner: str, **amounts: float) -> Found:
        """Look `key` up; if there is something to evaluate, `owner` has the claim on it (and on no other key).

        `amounts` are added to the statistics.
        """
        with self.store.transaction() as db:
            place = (self.task, key)
            db.execute("DELETE FROM flight WHERE owner = ? AND NOT (task = ? AND key = ?)", (owner, *place))
            query = "SELECT rewards, seconds, hits FROM entry WHERE task = ? AND key = ?"
            row = db.execute(query, place).fetchone()
            rewards = [as_reward(reward) for reward in json.loads(row[0])] if row else []
            if self.is_full(rewards):
                tick = self.count(**amounts, full_hits=1, seconds_saved=row[1] / len(rewards), uses=1)
                self._use(place, row[2] + 1, int(tick))
                return Found("full", rewards)
            flight = db.execute("SELECT owner, lease FROM flight WHERE task = ? AND key = ?", place).fetchone()
            if flight and flight[0] != owner and not is_gone(*flight):
                self.count(**amounts, waits=1)
                return Found("busy", [])
            db.execute("INSERT OR REPLACE INTO flight VALUES (?, ?, ?, ?)", (*place, owner, time.time() + self.lease))
            self.count(**amounts, **{"partial_hits" if rewards else "misses": 1})
            return Found("evaluate", rewards)

    def finish(self, key: int, owner: str, reward: Reward | None, seconds: float) -> None:
        """Store an evaluation, if `owner` still has the claim."""
        with self.store.transaction() as db:
            place = (self.task, key)
            if not db.execute("DELETE FROM flight WHERE task = ? AND key = ? AND owner = ?", (*place, owner)).rowcount:
                return
            row = db.execute("SELECT rewards, seconds FROM entry WHERE task = ? AND key = ?", place).fetchone()
            rewards, spent = (json.loads(row[0]), row[1]) if row else ([], 0.0)
            columns = (*place, dumps([*rewards, reward]), spent + seconds, 0, int(self.count(evaluations=1, uses=1)))
            db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?)", columns)
            if row is None and self.count(size=1) > self.capacity:
                oldest = "SELECT rowid FROM entry ORDER BY used LIMIT 1"
                self._forgot(db.execute(f"DELETE FROM entry WHERE rowid IN ({oldest})").rowcount)

    def release(self, owner: str) -> None:
        """Give up the claims of `owner`."""
        with self.store.transaction() as db:
            db.execute("DELETE FROM flight WHERE owner = ?", (owner,))

    def heartbeat(self, owner: str) -> float:
        """A sign of life: prolong the claims of `owner`, by as many seconds as are returned."""
        with self.store.transaction() as db:
            db.execute("UPDATE flight SET lease = ? WHERE owner = ?", (time.time() + self.lease, owner))
        return self.lease

    def count(self, **amounts: float) -> float:
        """Add to statistics; returns the last one."""
        with self.store.transaction() as db:
            change = ", ".join(f"{name} = {name} + ?" for name in amounts)
            query = f"UPDATE statistic SET {change} RETURNING {next(reversed(amounts))}"
            return db.execute(query, tuple(amounts.values())).fetchone()[0]

    def statistics(self) -> dict[str, float]:
        with self.store.transaction() as db:
            return dict(zip(STATISTICS, db.execute(f"SELECT {', '.join(STATISTICS)} FROM statistic").fetchone()))

    def is_full(self, rewards: Sequence[Any]) -> bool:
        return len(rewards) >= self.max_evals or None in rewards  # what is infeasible once needs no second opinion

    def _use(self, place: tuple[str, int], hits: int, tick: int) -> None:
        """After a full hit: move the entry to the front, or let go of it."""
        dropped = self.forget_every and hits >= self.forget_every
        if not dropped and self.remove_prob:
            dropped = random.Random(f"{self.seed}/{tick}").random() < self.remove_prob
        with self.store.transaction() as db:
            if dropped:
                self._forgot(db.execute("DELETE FROM entry WHERE task = ? AND key = ?", place).rowcount)
            else:
                db.execute("UPDATE entry SET hits = ?, used = ? WHERE task = ? AND key = ?", (hits, tick, *place))

    def _forgot(self, entries: int) -> None:
        self.count(size=-entries, forgotten=entries)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise TypeError("a cache in memory cannot go to another process; give it a store")
        rest = (self.task, self.max_evals, self.remove_prob, self.capacity, self.forget_every, self.seed)
        return Ledger, (self.path, *rest)


def mean(rewards: Sequence[Any]) -> Reward | None:
    """The mean of rewards (of each objective); None if one of them is infeasible."""
    if None in rewards:
        return None
    if isinstance(rewards[0], tuple):
        return tuple(math.fsum(values) / len(rewards) for values in zip(*rewards))
    return math.fsum(rewards) / len(rewards)


def numbers(reward: Any) -> Reward:
    """A reward as plain finite numbers."""
    try:
        plain = tuple(map(float, reward)) if isinstance(reward, (tuple, list)) else float(reward)
    except (TypeError, ValueError) as error:
        raise TypeError(f"full_eval: expected it to return a number or a tuple of them, got {reward!r}") from error
    if not all(map(math.isfinite, plain if isinstance(plain, tuple) else (plain,))):
        raise ValueError(f"full_eval: expected finite numbers, got {reward!r}; return None for an infeasible candidate")
    return plain


def symbolic_digest(candidate: Any) -> str | None:
    """The digest of a symbolic value; None for what has none, such as lambdas."""
    try:
        return digest(candidate)
    except SymbolicError:
        return None

"""The search loop: `for value, feedback in sample(space, algorithm, n=100): feedback(score(value.build()))`."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal

from flambeau.search.algorithm import Algorithm, Reward
from flambeau.search.coordinator import Coordinator, EarlyStopping, Turn, heartbeats, is_finite, new_owner
from flambeau.search.study import RaceConditionError, Study, Trial
from flambeau.symbolic import DNA, Template, build, template

if TYPE_CHECKING:
    from flambeau.search.functional.cache import Claim, FunctionalCache

NAMED: dict[str, Study] = {}  # studies of this process that poll_result and further loops find by name


class Feedback:
    """What a loop body (or an evaluation function) tells about its trial.

    Calling it with the reward finishes the trial; so do `done` (the reward of the last measurement) and `skip`. A
    reward is one finite number, higher is better, or a tuple of them for several objectives. Anything said about a
    finished trial raises RaceConditionError. `seed` is the trial's own: seed all randomness of the evaluation with it.
    """

    def __init__(self, coordinator: Coordinator, owner: str, trial: Trial, claim: Claim | None = None) -> None:
        self._coordinator, self._owner, self._trial = coordinator, owner, trial
        self._claim = claim  # on the key of a FunctionalCache
        self._last: Reward | None = None  # of the measurements
        self.finished = False

    @property
    def id(self) -> int:
        return self._trial.id

    @property
    def dna(self) -> DNA:
        return self._trial.dna

    @property
    def seed(self) -> int:
        return self._trial.seed

    def __call__(self, reward: Any, metadata: dict[str, Any] | None = None) -> None:
        """Finish the trial with this reward. NaN or infinite: ValueError, or a skip if `infeasible="skip"`.

        With a cache that averages evaluations, the trial's reward is the mean so far, its metadata tell the number.
        """
        self._complete(as_reward(reward), metadata or {})

    def add_measurement(self, step: int, reward: Any, metrics: dict[str, float] | None = None) -> None:
        """Store the reward at a step of the evaluation; it replaces measurements at this step and later ones.

        `metrics` are further numbers to look at; one that is not finite is stored as None.
        """
        self._last = as_reward(reward)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._coordinator.measure(self._owner, self.id, step, as_reward(reward), finite)

    def should_stop_early(self) -> bool:
        """Whether the early stopping policy gives up on the trial; the body then calls done() (or skip())."""
        stop = self._coordinator.should_stop(self._owner, self.id)
        if stop:
            self._claim = None  # what follows is no whole evaluation, which is all that a cache remembers
        return stop

    def done(self, metadata: dict[str, Any] | None = None) -> None:
        """Finish the trial with the reward of its last measurement; ValueError if there is none."""
        if self._claim is not None and self._last is not None:
            self._complete(self._last, metadata or {})
        else:
            self._coordinator.done(self._owner, self.id, metadata or {})
            self.finished = True

    def skip(self, reason: str = "") -> None:
        """Finish the trial as infeasible: the algorithm gets no feedback on it."""
        self._complete(None, {"reason": reason} if reason else {})

    def _complete(self, reward: Reward | None, metadata: dict[str, Any]) -> None:
        found = reward if reward is not None and is_finite(reward) else None
        if self._claim is not None and found is not None:
            reward, n_evals = self._claim.mean(found)
            metadata = {**metadata, "n_evals": n_evals} if n_evals > 1 else metadata
        self._coordinator.complete(self._owner, self.id, reward, metadata)
        self.finished = True
        if self._claim is not None:
            self._claim.finish(found)

    def end_loop(self) -> None:
        """Hand out no further trial, to any worker; the loop ends when its body comes back for more."""
        self._coordinator.end()


def sample(
    space: Any,
    algorithm: Algorithm,
    n: int | None = None,
    *,
    name: str | None = None,
    study: Study | str | os.PathLike[str] | None = None,
    group: str | None = None,
    early_stopping: EarlyStopping | None = None,
    where: Callable[[Any], bool] | None = None,
    deterministic: bool = False,
    batch: int = 8,
    infeasible: Literal["raise", "skip"] = "raise",
    seed: int = 0,
    lease: float = 60.0,
    cache: FunctionalCache | None = None,
    progress: Any = None,
) -> Generator[tuple[Any, Feedback], None, None]:
    """Yield (value, feedback) for up to `n` trials of a study that `algorithm` proposes from `space`.

    `space` is a value that contains hyper values, a Template, or a function without arguments that returns one of them.
    `study` is a file (or a Study): the search then continues there, and any number of processes that run this same loop
    on the file share its trials. `name` names the study, in the file or among those of this process (`poll_result`).
    Workers of one `group` are handed the same trial.

    A body that comes back without finishing its trial is handed the same one again, with a warning. A trial whose
    process died goes to the next worker that asks; where that cannot be seen (in another container, or not on Linux)
    after `lease` seconds without a sign of life.

    `deterministic` makes the (dna, reward) list independent of how many workers share it: trials are proposed in
    batches of `batch`, and fed back in the order of their ids when the batch is finished. `where` restricts the
    decisions to the hyper values it accepts; values then still contain the others. `early_stopping` decides
    `feedback.should_stop_early()`. Without file or name nothing outlives the loop.

    `cache`: a candidate whose reward is known is not yielded; its trial is finished with that reward (`trial.cached`),
    which the algorithm learns as from any other. What the body finishes is remembered, skips too. While another worker
    evaluates an equivalent candidate, this one waits for it. `deterministic` then needs evaluations without noise.

    Raises ValueError for a space without decisions, StudyError for a study of another space, seed or batch size.
    """
    if not isinstance(study, Study):
        study = Study(study, name or "main") if study or name not in NAMED else NAMED[name]
    elif name not in (None, study.name):
        raise ValueError(f"name: the study is called {study.name!r}, got {name!r}")
    decoder, coordinator = prepare(
        space,
        algorithm,
        n,
        study,
        early_stopping=early_stopping,
        where=where,
        deterministic=deterministic,
        batch=batch,
        infeasible=infeasible,
        seed=seed,
        lease=lease,
    )
    if cache is not None and group:
        raise ValueError("group: its workers evaluate a trial together, which a cache cannot follow; give one of them")
    if name:
        NAMED[name] = study
    owner = f"group|{group}" if group else new_owner()
    return hand_out(decoder, coordinator, owner, report(study, n, progress), build(cache))


def poll_result(name: str) -> Study:
    """The study that a loop of this process samples, or sampled, under this name."""
    if name not in NAMED:
        close = difflib.get_close_matches(name, NAMED)
        raise ValueError(f"name: no study {name!r} in this process; nearest: {close or sorted(NAMED)}")
    return NAMED[name]


def prepare(
    space: Any,
    algorithm: Algorithm,
    n: int | None,
    study: Study,
    *,
    early_stopping: EarlyStopping | None = None,
    where: Callable[[Any], bool] | None = None,
    deterministic: bool = False,
    batch: int = 8,
    infeasible: str = "raise",
    seed: int = 0,
    lease: float = 60.0,
) -> tuple[Template, Coordinator]:
    """What decodes proposals to values, and what hands them out."""
    if infeasible not in ("raise", "skip"):
        raise ValueError(f"infeasible: expected 'raise' or 'skip', got {infeasible!r}")
    decoder = as_template(space, where)
    coordinator = Coordinator(
        study,
        decoder.spec,
        build(algorithm),
        n=n,
        seed=seed,
        batch=batch if deterministic else None,
        early_stopping=build(early_stopping),
        skip_infeasible=infeasible == "skip",
        lease=lease if study.path else math.inf,  # nobody could take over a trial of a study in memory
    )
    return decoder, coordinator


def hand_out(
    decoder: Template,
    coordinator: Coordinator,
    owner: str,
    reporter: AbstractContextManager[Callable[[], None]],
    cache: FunctionalCache | None = None,
) -> Generator[tuple[Any, Feedback], None, None]:
    """The loop of one worker."""
    last, pause, claim = -1, 0.01, None
    alive = heartbeats(cache.ledger, owner) if cache is not None else nullcontext()
    with reporter as update, heartbeats(coordinator, owner), alive:
        try:
            while (turn := coordinator.acquire(owner)) is not Turn.END:
                update()
                if isinstance(turn, Turn):
                    if cache is not None and claim is not None:  # whose trial is over, however it ended
                        cache.ledger.release(owner)
                        claim = None
                    time.sleep(pause)
                    pause = min(2 * pause, 0.2)
                    continue
                value, again = decoder.decode(turn.dna), turn.id == last
                last, pause = turn.id, 0.01
                if again:
                    message = f"trial {turn.id} is handed out again: finish it with feedback(reward), done() or skip()"
                    warnings.warn(message, stacklevel=2)
                elif cache is not None:
                    claim = cache.claim(value, owner)
                    if claim.cached is not None:
                        known = {"cached": True, "n_evals": claim.cached.n_evals}
                        with suppress(RaceConditionError):  # taken for dead while it waited
                            coordinator.complete(owner, turn.id, claim.cached.value, known)
                        continue
                yield value, Feedback(coordinator, owner, turn, claim)
            update()
        finally:
            if cache is not None:
                cache.ledger.release(owner)
            if not owner.startswith("group|"):  # the others of a group go on with its trial
                coordinator.release(owner)


def as_template(space: Any, where: Callable[[Any], bool] | None = None) -> Template:
    """The template of a space, with decisions to make."""
    if inspect.isfunction(space):
        space = space()
    if not isinstance(space, Template):
        space = template(space, where)
    elif where is not None:
        raise ValueError("where: expected the value itself as space, got a finished Template")
    if space.space_size == 1:
        raise ValueError("space: expected hyper values such as oneof([...]) in it, got a constant")
    return space


def as_reward(reward: Any) -> Reward:
    """A reward as plain numbers."""
    try:
        return tuple(float(r) for r in reward) if isinstance(reward, (tuple, list)) else float(reward)
    except (TypeError, ValueError) as error:
        raise TypeError(f"reward: expected a number or a tuple of numbers, got {reward!r}") from error


@contextmanager
def report(study: Study, n: int | None, progress: Any) -> Iterator[Callable[[], None]]:
    """A function that moves the progress display to the number of finished trials."""
    with progress("search", n) if progress else nullcontext() as display:
        shown = 0

        def update() -> None:
            nonlocal shown
            if display is not None and (finished := study.finished()) > shown:
                display.advance(finished - shown)
                shown = finished

        yield update

"""Evolution of register programs, and of loss functions, with a functional cache beside no cache."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flambeau.data.tables import breast_cancer
from flambeau.search import FunctionalCache, Study, functional_hash, search
from flambeau.search.algorithms import RegularizedEvolution
from flambeau.search.functional.probe import FunctionProbe, random_inputs
from flambeau.search.register_programs import Machine, Mutator, Program, ProgramProbe, linear_tasks, live_code
from flambeau.symbolic import oneof, symbolize, template

Progress = Callable[[str, int | None], AbstractContextManager[Any]]


def evolve_programs(
    evaluate: Callable[[Program], float],
    mutator: Mutator,
    count: int,
    *,
    population: int = 1000,
    tournament: int = 10,
    mutate_probability: float = 0.9,
    seed: int = 0,
) -> list[float]:
    """Regularised evolution as in AutoML-Zero's demonstration; the fitness of each of `count` programs, in order."""
    rng, alive, fitness = random.Random(seed), deque[tuple[Program, float]](maxlen=population), []
    for born in range(count):
        if born < population:
            program = mutator.random(rng)
        else:
            program, _ = max((alive[rng.randrange(population)] for _ in range(tournament)), key=lambda one: one[1])
            if rng.random() < mutate_probability:
                program = mutator.mutate(program, rng)
        fitness.append(evaluate(program))
        alive.append((program, fitness[-1]))  # the oldest goes
    return fitness


class ProgramComparison(NamedTuple):
    """What a search over programs cost with and without a cache.

    speed: programs a second with the cache over those without. hits: share of programs that were not evaluated.
    text_hits: the same for a cache by equal text. wrong: share of hits whose own fitness is another than the cache's.
    best: the best fitness.
    """

    speed: float
    hits: float
    text_hits: float
    wrong: float
    seconds: float
    cached_seconds: float
    best: float


def compare_programs(
    count: int, population: int, tournament: int, seed: int, advance: Callable[[], None]
) -> ProgramComparison:
    """One search over linear-regression programs; every program is evaluated, and looked up in a cache, in turn."""
    tasks, machine = linear_tasks(seed=seed), Machine()
    probe = ProgramProbe(tasks, machine=machine)
    cache = FunctionalCache(partial(functional_hash, probe=probe), structural=live_code)
    fitness = partial(machine.fitness, tasks=tasks)
    spent, spent_cached, hits, wrong, programs = 0.0, 0.0, 0, 0, set()

    def evaluate(program: Program) -> float:
        nonlocal spent, spent_cached, hits, wrong
        began = time.perf_counter()
        plain = fitness(program)
        between = time.perf_counter()
        result = cache.evaluate(program, fitness)
        spent, spent_cached = spent + between - began, spent_cached + time.perf_counter() - between
        hits += result.cached
        wrong += abs(plain - result.value) > 1e-6  # type: ignore[operator]
        programs.add(program)
        advance()
        return plain

    found = evolve_programs(
        evaluate, Mutator(machine=machine), count, population=population, tournament=tournament, seed=seed
    )
    return ProgramComparison(
        speed=spent / spent_cached,
        hits=hits / count,
        text_hits=1 - len(programs) / count,
        wrong=wrong / max(hits, 1),
        seconds=spent,
        cached_seconds=spent_cached,
        best=max(found),
    )


# -- loss functions --------------------------------------------------------------------------------------------------

UNARY = {
    "identity": lambda a: a,
    "negative": lambda a: -a,
    "square": lambda a: a * a,
    "abs": torch.abs,
    "exp": torch.exp,
    "softplus": torch.nn.functional.softplus,
    "relu": torch.relu,
}
BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": torch.maximum,
}
Loss = Callable[[Tensor, Tensor], Tensor]


def variable(name: str) -> Loss:
    """The logit, the target in {-1, 1}, or 1."""
    return {
        "logit": lambda logit, target: logit,
        "target": lambda logit, target: target,
        "one": lambda logit, target: torch.ones_like(logit),
    }[name]


def unary(name: str, inner: Loss) -> Loss:
    return lambda logit, target: UNARY[name](inner(logit, target))


def binary(name: str, left: Loss, right: Loss) -> Loss:
    return lambda logit, target: BINARY[name](left(logit, target), right(logit, target))


def loss_space() -> Any:
    """Losses `u(b(x, u(b(x, x))))` of unary u, binary b and variables x."""

    def leaf() -> Any:
        return symbolize(variable)(name=oneof(["logit", "target", "one"]))

    inner = symbolize(binary)(name=oneof(list(BINARY)), left=leaf(), right=leaf())
    outer = symbolize(binary)(
        name=oneof(list(BINARY)), left=leaf(), right=symbolize(unary)(name=oneof(list(UNARY)), inner=inner)
    )
    return symbolize(unary)(name=oneof(list(UNARY)), inner=outer)


class LossTrainer:
    """Validation accuracy of a linear classifier of tumours that is trained with a loss; None where that diverges."""

    def __init__(self, steps: int = 100, lr: float = 0.1) -> None:
        table = breast_cancer()
        features = torch.as_tensor(table.features, dtype=torch.float32)
        self.features = (features - features.mean(0)) / features.std(0)
        self.targets = torch.as_tensor(table.target, dtype=torch.float32) * 2 - 1
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        self.train, self.valid = order[:300], order[300:]
        self.steps, self.lr, self.count = steps, lr, 0

    def __call__(self, candidate: Any, feedback: Any = None) -> float | None:
        self.count += 1
        loss, weights = candidate.build(), torch.zeros(self.features.shape[1] + 1, requires_grad=True)
        for _ in range(self.steps):
            logits = self.features[self.train] @ weights[1:] + weights[0]
            (gradient,) = torch.autograd.grad(
                loss(logits, self.targets[self.train]).mean() + 0 * weights.sum(), [weights]
            )
            weights = (weights - self.lr * gradient).detach().requires_grad_()
        logits = (self.features[self.valid] @ weights[1:] + weights[0]).detach()
        if not torch.isfinite(logits).all():
            if feedback is not None:
                feedback.skip("diverged")
            return None
        return float(((logits > 0) == (self.targets[self.valid] > 0)).float().mean())


def search_losses(trials: int, seed: int, progress: Progress | None = None) -> tuple[Study, dict[str, float], int]:
    """A search over losses with a cache: its study, the statistics of the cache, and how many losses were trained."""
    probe = FunctionProbe(random_inputs((16,), (16,), seed=1), gradients=True)
    cache = FunctionalCache(partial(functional_hash, probe=probe))
    train = LossTrainer()
    algorithm = RegularizedEvolution(population=30, tournament=8)
    study = search(loss_space(), algorithm, train, trials, seed=seed, cache=cache, progress=progress)
    return study, cache.statistics(), train.count


def loss_rows(study: Study, best: int = 5) -> Sequence[dict[str, Any]]:
    """The best losses of a study, of equal rewards the first."""
    space = template(loss_space())
    ranked = sorted((t for t in study.trials() if t.reward is not None and not t.cached), key=lambda t: -t.reward)
    return [{"accuracy %": 100 * t.reward, "loss": loss_text(space.decode(t.dna))} for t in ranked[:best]]


def loss_text(node: Any) -> str:
    """A loss as text."""
    inner = [loss_text(node.args[part]) for part in ("inner", "left", "right") if part in node.args]
    return f"{node.name}({', '.join(inner)})" if inner else node.name

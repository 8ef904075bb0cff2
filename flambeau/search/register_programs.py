"""Learning algorithms as programs of a register machine, and the operators that evolve them.

After Real et al. 2020, "AutoML-Zero: Evolving Machine Learning Algorithms From Scratch", section 3: a program is three
lists of instructions, `setup`, `predict` and `learn`, over small memories of scalars, vectors and matrices. In
s0 a program finds the label (while it learns), in v0 the features; in s1 it leaves its prediction.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

LABEL, PREDICTION, FEATURES = 0, 1, 0  # s0, s1, v0
MAX_ERROR = 100.0  # a larger error ends the run: the program has run away


class Operation(NamedTuple):
    """An instruction's kinds of inputs and output ("s", "v", "m"), number of constants, and what it computes.

    `compute(*inputs, *constants)` has all tasks in the first axis; `commutes`: inputs may be swapped.
    """

    inputs: str
    output: str
    constants: int
    compute: Callable[..., np.ndarray]
    commutes: bool = False


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]


OPERATIONS = {
    "scalar_const": Operation("", "s", 1, lambda c: c),
    "scalar_sum": Operation("ss", "s", 0, lambda a, b: a + b, True),
    "scalar_diff": Operation("ss", "s", 0, lambda a, b: a - b),
    "scalar_product": Operation("ss", "s", 0, lambda a, b: a * b, True),
    "scalar_division": Operation("ss", "s", 0, lambda a, b: a / b),
    "scalar_min": Operation("ss", "s", 0, np.minimum, True),
    "scalar_max": Operation("ss", "s", 0, np.maximum, True),
    "scalar_abs": Operation("s", "s", 0, np.abs),
    "scalar_sin": Operation("s", "s", 0, np.sin),
    "scalar_cos": Operation("s", "s", 0, np.cos),
    "scalar_exp": Operation("s", "s", 0, np.exp),
    "scalar_log": Operation("s", "s", 0, np.log),
    "scalar_heaviside": Operation("s", "s", 0, lambda a: (a >= 0).astype(np.float64)),
    "vector_sum": Operation("vv", "v", 0, lambda a, b: a + b, True),
    "vector_diff": Operation("vv", "v", 0, lambda a, b: a - b),
    "vector_product": Operation("vv", "v", 0, lambda a, b: a * b, True),
    "vector_abs": Operation("v", "v", 0, np.abs),
    "vector_heaviside": Operation("v", "v", 0, lambda a: (a > 0).astype(np.float64)),
    "scalar_vector_product": Operation("sv", "v", 0, lambda a, b: a[:, None] * b),
    "inner_product": Operation("vv", "s", 0, lambda a, b: np.einsum("ti,ti->t", a, b), True),
    "vector_mean": Operation("v", "s", 0, lambda a: a.mean(1)),
    "vector_norm": Operation("v", "s", 0, lambda a: np.sqrt((a * a).sum(1))),
    "outer_product": Operation("vv", "m", 0, _outer),
    "matrix_sum": Operation("mm", "m", 0, lambda a, b: a + b, True),
    "scalar_matrix_product": Operation("sm", "m", 0, lambda a, b: a[:, None, None] * b),
    "matrix_vector_product": Operation("mv", "v", 0, lambda a, b: np.einsum("tij,tj->ti", a, b)),
    "matrix_product": Operation("mm", "m", 0, lambda a, b: a @ b),
    "transpose": Operation("m", "m", 0, lambda a: a.transpose(0, 2, 1)),
}  # fmt: skip
LINEAR = ("scalar_const", "inner_product", "scalar_diff", "scalar_product", "scalar_vector_product", "vector_sum")


class Instruction(NamedTuple):
    """`output = operation(inputs, constants)`, inputs and output being addresses in the memories of their kinds."""

    operation: str
    inputs: tuple[int, ...]
    output: int
    constants: tuple[float, ...] = ()

    def __str__(self) -> str:
        kinds = OPERATIONS[self.operation]
        arguments = [f"{kind}{address}" for kind, address in zip(kinds.inputs, self.inputs)]
        arguments += [f"{constant:.6g}" for constant in self.constants]
        return f"{kinds.output}{self.output} = {self.operation}({', '.join(arguments)})"


@dataclass(frozen=True)
class Program:
    """A learning algorithm: `setup` runs once; for each example `predict`, and in training then `learn`.

    Raises:
        ValueError: an unknown operation, a wrong number of inputs or constants, or an address that is negative or
            holds what the machine provides (s0, v0) as output.
    """

    setup: tuple[Instruction, ...]
    predict: tuple[Instruction, ...]
    learn: tuple[Instruction, ...]

    def __post_init__(self) -> None:
        for line in (*self.setup, *self.predict, *self.learn):
            if line.operation not in OPERATIONS:
                raise ValueError(f"operation: expected one of {sorted(OPERATIONS)}, got {line.operation!r}")
            kinds = OPERATIONS[line.operation]
            if len(line.inputs) != len(kinds.inputs) or len(line.constants) != kinds.constants:
                expected = f"{len(kinds.inputs)} inputs and {kinds.constants} constants"
                raise ValueError(f"{line.operation}: expected {expected}, got {line.inputs} and {line.constants}")
            if min((*line.inputs, line.output)) < 0 or line.output < first_output(kinds.output):
                raise ValueError(f"{line.operation}: it may not write to {kinds.output}{line.output}: {line}")

    def __str__(self) -> str:
        parts = [("setup", self.setup), ("predict", self.predict), ("learn", self.learn)]
        return "\n".join(f"{name}:\n" + "".join(f"  {line}\n" for line in lines).rstrip("\n") for name, lines in parts)


def live_code(program: Program) -> tuple[tuple[Instruction, ...], ...]:
    """The lines of setup, predict and learn that can have an effect on a prediction; without the others it computes
    exactly the same.

    A line is live if a later one, up to the end of the program's loop, reads what it wrote; `predict` runs after
    `learn` in training, and after itself in validation.
    """
    at_predict: set[str] = set()  # what `predict` reads that an earlier run of something wrote
    while True:
        learn, at_learn = _live(program.learn, at_predict)
        predict, reads = _live(program.predict, {f"s{PREDICTION}"} | at_learn | at_predict)
        if reads <= at_predict:
            return _live(program.setup, at_predict)[0], predict, learn
        at_predict |= reads


def _live(lines: tuple[Instruction, ...], wanted: set[str]) -> tuple[tuple[Instruction, ...], set[str]]:
    """Of a component, the lines that matter for memories that are `wanted` behind it, and those wanted before it."""
    kept, wanted = [], set(wanted)
    for line in reversed(lines):
        kinds = OPERATIONS[line.operation]
        written = f"{kinds.output}{line.output}"
        if written in wanted:
            wanted.discard(written)
            wanted.update(f"{kind}{address}" for kind, address in zip(kinds.inputs, line.inputs))
            kept.append(line)
    return tuple(reversed(kept)), wanted


def first_output(kind: str) -> int:
    """The first address that programs may write to: s0 and v0 are the machine's."""
    return 0 if kind == "m" else 1


@dataclass(frozen=True)
class Tasks:
    """Regression tasks of one size, learned side by side.

    train: features `[tasks, examples, size]` and labels `[tasks, examples]`; valid likewise.
    """

    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]

    def __post_init__(self) -> None:
        for name in ("train", "valid"):
            features, labels = getattr(self, name)
            if features.ndim != 3 or features.shape[:2] != labels.shape or not labels.size:
                expected = "features [tasks, examples, size] and labels [tasks, examples], at least 1 example"
                raise ValueError(f"{name}: expected {expected}, got shapes {features.shape} and {labels.shape}")

    def first(self, train: int, valid: int) -> Tasks:
        """The first examples of each task."""
        cut = [tuple(part[:, :n] for part in pair) for pair, n in ((self.train, train), (self.valid, valid))]
        return Tasks(*cut)  # type: ignore[arg-type]


def linear_tasks(tasks: int = 10, size: int = 4, train: int = 100, valid: int = 100, seed: int = 0) -> Tasks:
    """Noise-free linear regression: features and the weights of each task are normal (AutoML-Zero, section 4.1)."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((tasks, size))
    pairs = []
    for examples in (train, valid):
        features = rng.standard_normal((tasks, examples, size))
        pairs.append((features, np.einsum("tns,ts->tn", features, weights)))
    return Tasks(*pairs)


class Machine:
    """Runs programs on all tasks at once.

    Args:
        scalars, vectors, matrices: size of the memories; all zero at the start.
    """

    def __init__(self, scalars: int = 4, vectors: int = 3, matrices: int = 1) -> None:
        self.sizes = {"s": scalars, "v": vectors, "m": matrices}

    def errors(self, program: Program, tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
        """Signed errors `[examples, tasks]` of training and validation, before the program sees the label.

        After an error that is not finite or above `MAX_ERROR` in some task, that task's later errors are infinite; when
        none is left the run ends.

        Raises:
            ValueError: an address outside the memories.
        """
        features, labels = tasks.train
        count, _, size = features.shape
        memory: dict[str, list[np.ndarray]] = {
            "s": [np.zeros(count) for _ in range(self.sizes["s"])],
            "v": [np.zeros((count, size)) for _ in range(self.sizes["v"])],
            "m": [np.zeros((count, size, size)) for _ in range(self.sizes["m"])],
        }
        setup, predict, learn = (
            [self.bind(line, count) for line in part] for part in (program.setup, program.predict, program.learn)
        )
        scalars, vectors = memory["s"], memory["v"]
        nothing, alive = np.zeros(count), np.ones(count, bool)
        found = []
        with np.errstate(all="ignore"):
            execute(setup, memory)
            for (inputs, targets), learns in ((tasks.train, True), (tasks.valid, False)):
                errors = np.full(targets.T.shape, np.inf)
                for i in range(targets.shape[1]):
                    vectors[FEATURES], scalars[LABEL] = inputs[:, i], nothing
                    execute(predict, memory)
                    error = targets[:, i] - scalars[PREDICTION]
                    alive &= np.abs(error) <= MAX_ERROR  # False for NaN
                    if not alive.any():
                        break
                    errors[i, alive] = error[alive]
                    if learns:
                        vectors[FEATURES], scalars[LABEL] = inputs[:, i], targets[:, i]
                        execute(learn, memory)
                found.append(errors)
        return found[0], found[1]

    def fitness(self, program: Program, tasks: Tasks) -> float:
        """Mean over tasks of 1 - 2/pi atan(root mean squared error of validation): 1 is perfect, 0 ran away."""
        _, errors = self.errors(program, tasks)
        return float(np.mean(1 - 2 / math.pi * np.arctan(np.sqrt(np.mean(errors * errors, axis=0)))))

    def bind(self, line: Instruction, tasks: int) -> tuple:
        """An instruction ready to run: what to compute, from where, to where, with which constants."""
        kinds = OPERATIONS[line.operation]
        for kind, address in zip(kinds.inputs + kinds.output, (*line.inputs, line.output)):
            if address >= self.sizes[kind]:
                raise ValueError(f"program: {line} uses {kind}{address}, the machine has {self.sizes[kind]} {kind}")
        constants = [np.full(tasks, constant) for constant in line.constants]
        return kinds.compute, tuple(zip(kinds.inputs, line.inputs)), kinds.output, line.output, constants


def execute(lines: list[tuple], memory: dict[str, list[np.ndarray]]) -> None:
    """Run bound instructions; arrays in memory are replaced, never written to."""
    for compute, inputs, kind, output, constants in lines:
        memory[kind][output] = compute(*[memory[k][address] for k, address in inputs], *constants)


class ProgramProbe:
    """Hashes programs by their errors on the first examples of each task (10 and 10 in AutoML-Zero).

    Errors are squashed, as in the published code, so that a task in which the program ran away counts as error 1
    instead of making all of them one failure.
    """

    def __init__(self, tasks: Tasks, train: int = 10, valid: int = 10, machine: Machine | None = None) -> None:
        if train < 1 or valid < 1:
            raise ValueError(f"train, valid: expected at least 1 example each, got {train} and {valid}")
        self.tasks, self.machine = tasks.first(train, valid), machine or Machine()

    def numbers(self, program: Program) -> list[float]:
        """Squashed absolute errors in [0, 1], all of training and then of validation."""
        errors = np.concatenate(self.machine.errors(program, self.tasks))
        return (2 / math.pi * np.arctan(np.abs(errors))).reshape(-1).tolist()


class Mutator:
    """Draws and changes programs as AutoML-Zero does, with the sizes and operations of its demonstration.

    A mutation, one of four with equal chance among those that apply: alter one argument of an instruction; draw an
    instruction anew; draw all instructions of a component anew; insert or remove an instruction.

    Args:
        operations: names from `OPERATIONS`.
        sizes: instructions in setup, predict and learn of a random program.
        resize: the most instructions a component may have; None: sizes stay, nothing is inserted or removed.
    """

    def __init__(
        self,
        operations: tuple[str, ...] = LINEAR,
        sizes: tuple[int, int, int] = (10, 2, 8),
        machine: Machine | None = None,
        resize: int | None = None,
    ) -> None:
        unknown = sorted(set(operations) - set(OPERATIONS))
        if unknown or not operations:
            raise ValueError(f"operations: expected names from {sorted(OPERATIONS)}, got {unknown or 'none'}")
        self.operations, self.sizes, self.resize = tuple(operations), sizes, resize
        self.memory = (machine or Machine()).sizes

    def random(self, rng: random.Random) -> Program:
        """A random program."""
        return Program(*(tuple(self.instruction(rng) for _ in range(size)) for size in self.sizes))

    def instruction(self, rng: random.Random) -> Instruction:
        """A random instruction; constants are uniform in [-1, 1]."""
        name = rng.choice(self.operations)
        kinds = OPERATIONS[name]
        inputs = tuple(rng.randrange(self.memory[kind]) for kind in kinds.inputs)
        output = rng.randrange(first_output(kinds.output), self.memory[kinds.output])
        return Instruction(name, inputs, output, tuple(rng.uniform(-1, 1) for _ in range(kinds.constants)))

    def mutate(self, program: Program, rng: random.Random) -> Program:
        """A copy with one mutation."""
        part = rng.choice(("setup", "predict", "learn"))
        lines = list(getattr(program, part))
        kind = rng.choice(("alter", "instruction", "component") + (("resize",) if self.resize else ()))
        if kind == "component":
            lines = [self.instruction(rng) for _ in lines]
        elif kind == "resize" and self.resize:
            if rng.random() < 0.5 and len(lines) < self.resize:
                lines.insert(rng.randrange(len(lines) + 1), self.instruction(rng))
            elif lines:
                del lines[rng.randrange(len(lines))]
        elif lines:
            at = rng.randrange(len(lines))
            lines[at] = self.instruction(rng) if kind == "instruction" else self.alter(lines[at], rng)
        return replace(program, **{part: tuple(lines)})

    def alter(self, line: Instruction, rng: random.Random) -> Instruction:
        """The instruction with one input, its output or its constant changed (a constant in sign or by a factor)."""
        kinds = OPERATIONS[line.operation]
        at = rng.randrange(len(line.inputs) + len(line.constants) + 1)
        if at < len(line.inputs):
            inputs = list(line.inputs)
            inputs[at] = rng.randrange(self.memory[kinds.inputs[at]])
            return line._replace(inputs=tuple(inputs))
        if at < len(line.inputs) + len(line.constants):
            (constant,) = line.constants
            changed = -constant if rng.random() < 0.5 else constant * math.exp(rng.gauss(0, 1))
            return line._replace(constants=(changed,))
        return line._replace(output=rng.randrange(first_output(kinds.output), self.memory[kinds.output]))

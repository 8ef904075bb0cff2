"""The C++ of an expression's cell in the form of ``cells.h``, from its operations alone: no text of the user enters."""

import functools

from flambeau.ops.flashrnn.expression import Graph, Program, defined_cell, differentiate

DEAR = {"gate", "sigmoid", "tanh", "exp", "logsigmoid", "/"}  # kept for the backward pass; the rest is computed again

TEMPLATE = """#include "vector_math.h"
#define FLASHRNN_GENERATED {words}
namespace flambeau {{
static inline vf negative(vf x) {{ return -x; }}
static inline vf relu(vf x) {{ return select(x <= 0.0f, vf{{}}, x); }}  // NaN stays NaN in all three
static inline vf maximum(vf a, vf b) {{ return select(a != a, a, max(a, b)); }}
static inline vf minimum(vf a, vf b) {{ return select(a != a, a, min(a, b)); }}
static inline vf where_positive(vf a, vf d) {{ return select(a > 0.0f, d, vf{{}}); }}
static inline vf share(vf a, vf b, vf d) {{ return select(a > b, d, select(a == b, d * 0.5f, vf{{}})); }}
struct Generated {{
    static constexpr int RG = {recurrent}, WG = {inputs}, G = {gates}, S = {states}, SAVED = {saved};
    static inline void forward(const vf* a, const vf* prev, vf* next, vf* saved) {{
{forward}
    }}
    static inline void backward(const vf* saved, const vf* prev, const vf* next, const vf* dnext, vf* da, vf* dprev) {{
{backward}
    }}
}};
}}  // namespace flambeau
"""
LEAVES = {"gate": "a", "prev": "prev", "dnext": "dnext"}
SPELLING = {"constant": "set1({!r}f)", "logsigmoid": "log_sigmoid", "min": "minimum", "max": "maximum"}


@functools.lru_cache(maxsize=256)
def saved_values(definition: str) -> int:
    """How many values a unit of the cell keeps for the backward pass."""
    return len(plan(definition)[3])


@functools.lru_cache(maxsize=256)
def cpp(definition: str, bf16: bool) -> str:
    """The struct ``Generated``, and the define by which ``cpu.cpp`` takes it and this precision instead of all."""
    cell = defined_cell(definition)
    program = cell.pointwise
    assert isinstance(program, Program)
    graph, to_gates, to_prev, saved = plan(definition)
    forward = [f"const vf {line};" for line in lines(graph, [*program.outputs, *saved], {}, "{}[{}]", SPELLING)]
    forward += [f"next[{i}] = v{number};" for i, number in enumerate(program.outputs)]
    forward += [f"saved[{i}] = v{number};" for i, number in enumerate(saved)]
    results = [n for n in (*to_gates, *to_prev) if n is not None]
    known = kept(program, saved)
    backward = [f"const vf {line};" for line in lines(graph, results, known, "{}[{}]", SPELLING)]
    for target, gradients in (("da", to_gates), ("dprev", to_prev)):
        backward += [f"{target}[{i}] = {'vf{}' if n is None else f'v{n}'};" for i, n in enumerate(gradients)]
    indent = "\n        "
    return TEMPLATE.format(
        words="Bf16" if bf16 else "Fp32", recurrent=cell.recurrent_gates, inputs=cell.input_gates,
        gates=cell.gates, states=cell.states, saved=len(saved), forward=" " * 8 + indent.join(forward),
        backward=" " * 8 + indent.join(backward),
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def plan(definition: str) -> tuple[Graph, list[int | None], list[int | None], list[int]]:
    """The derivative's graph, its results, and the numbers of the forward operations that are kept for it."""
    cell = defined_cell(definition)
    program = cell.pointwise
    assert isinstance(program, Program)
    graph, to_gates, to_prev = differentiate(program, cell.gates)
    free = _from_states(program)
    results = [n for n in (*to_gates, *to_prev) if n is not None]
    stop = {n for n in range(len(program.operations)) if n in free or graph.operations[n].kind in DEAR}
    needed = _needed(graph, results, stop)
    return graph, to_gates, to_prev, sorted(n for n in needed & stop if n not in free)


def _from_states(program: Program) -> dict[int, tuple[str, int]]:
    """The operations the backward pass reads from the new states, as ("next", state).

    The first state may have been clipped. Where it was, its gradient is zero and its value does not matter, unless
    other states are computed from it too.
    """
    graph = Graph(list(program.operations))
    known = {number: ("next", i) for i, number in enumerate(program.outputs) if i > 0}
    if program.outputs[0] not in _needed(graph, program.outputs[1:], set()):
        known[program.outputs[0]] = ("next", 0)
    return {n: leaf for n, leaf in known.items() if program.operations[n].arguments}


def _needed(graph: Graph, results: list[int] | tuple[int, ...], stop: set[int]) -> set[int]:
    """The results and all they are computed from, without going behind ``stop``."""
    needed, waiting = set[int](), list(results)
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += [] if number in stop else graph.operations[number].arguments
    return needed


def kept(program: Program, saved: list[int]) -> dict[int, tuple[str, int]]:
    """The operations the backward pass reads instead of computing them, as ("next", state) or ("saved", number)."""
    return _from_states(program) | {number: ("saved", i) for i, number in enumerate(saved)}


def lines(
    graph: Graph, results: list[int], known: dict[int, tuple[str, int]], leaf: str, spelling: dict[str, str]
) -> list[str]:
    """Assignments ``v0 = ...`` that compute the results, in C++ or Triton: they differ in leaves and functions."""
    assignments = []
    for number in sorted(_needed(graph, results, set(known))):
        o = graph.operations[number]
        x = [f"v{i}" for i in o.arguments]
        if number in known:
            text = leaf.format(*known[number])
        elif o.kind in LEAVES:
            text = leaf.format(LEAVES[o.kind], o.index)
        elif o.kind == "constant":
            text = spelling["constant"].format(o.value)
        elif o.kind in "+-*/":
            text = f"{x[0]} {o.kind} {x[1]}"
        else:
            text = f"{spelling.get(o.kind, o.kind)}({', '.join(x)})"
        assignments.append(f"v{number} = {text}")
    return assignments

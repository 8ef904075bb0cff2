"""Recurrent cells written as a few assignments: parsed, never executed, and run by the reference and the kernels alike.

The text becomes a list of operations. PyTorch evaluates that list in the reference; ``differentiate`` appends the
operations of its reverse-mode derivative, from which ``generated.py`` and ``generated_gpu.py`` write the kernels' cell.
"""

import ast
import difflib
import functools
import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flambeau.ops.flashrnn.reference import Cell, Tensors

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "logsigmoid": logsigmoid,
    "relu": torch.relu,
    "min": torch.minimum,
    "max": torch.maximum,
}
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
MOST_GATES, MOST_STATES = 6, 4  # the sums of one row of all gates must fit 16 vector registers
MOST_CHARACTERS, MOST_TERMS = 4096, 256
FLOAT_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Operation:
    """``kind`` applied to earlier operations, or a leaf: gate, prev or dnext number ``index``, or a constant."""

    kind: str
    arguments: tuple[int, ...] = ()
    index: int = 0
    value: float = 0.0


@dataclass
class Graph:
    """Operations in an order in which each comes after its arguments; equal ones exist once."""

    operations: list[Operation] = field(default_factory=list)
    numbers: dict[Operation, int] = field(default_factory=dict)

    def add(self, kind: str, *arguments: int, index: int = 0, value: float = 0.0) -> int:
        operation = Operation(kind, arguments, index, value)
        if operation not in self.numbers:
            self.numbers[operation] = len(self.operations)
            self.operations.append(operation)
        return self.numbers[operation]


@dataclass(frozen=True)
class Program:
    """The operations of a cell and, for each state, the number of the one that gives its new value."""

    operations: tuple[Operation, ...]
    outputs: tuple[int, ...]

    def __call__(self, pre: Tensors, prev: Tensors) -> Tensors:
        values: list[Tensor] = []
        for o in self.operations:
            x = [values[i] for i in o.arguments]
            if o.kind == "gate":
                values.append(pre[o.index])
            elif o.kind == "prev":
                values.append(prev[o.index])
            elif o.kind == "constant":
                values.append(torch.full_like(pre[0], o.value))
            elif o.kind in FUNCTIONS:
                values.append(FUNCTIONS[o.kind](*x))
            elif o.kind == "negative":
                values.append(-x[0])
            else:
                a, b = x
                values.append({"+": a.add, "-": a.sub, "*": a.mul, "/": a.div}[o.kind](b))
        return tuple(values[i] for i in self.outputs)


def expression_cell(
    text: str, gates: str, states: str, recurrent_gates: int | None = None, input_gates: int | None = None
) -> Cell:
    """A cell of your own that also runs in the kernels, C++ on the CPU and Triton on a GPU, forward and backward.

    ``expression_cell("f = sigmoid(f); h = f * h + (1 - f) * tanh(z)", gates="f z", states="h")``

    Each line of ``text`` is ``NAME = EXPRESSION`` of numbers, names, ``+ - * /``, parentheses and the functions
    sigmoid, tanh, exp, logsigmoid, relu, min and max, element by element. Lines are read in order, as in Python: a
    state's name is its previous value until it is assigned and the new one after. The text is parsed, never executed.
    At ties min and max give each side half of the gradient.

    Args:
        gates: names of the pre-activations, at most 6, separated by spaces.
        states: names of the states, at most 4; the first recurs.
        recurrent_gates: how many gates, from the first, get R h; all when absent.
        input_gates: how many gates, to the last, get Wx; all when absent.

    Raises:
        ValueError: the text is not such assignments, a name or function is unknown, a gate is never used, a state is
            never assigned, or a number of gates or states does not fit; the message names it.
    """
    names = {"gates": gates.split(), "states": states.split()}
    for kind, most in (("gates", MOST_GATES), ("states", MOST_STATES)):
        if not 1 <= len(names[kind]) <= most:
            raise ValueError(f"{kind} names {len(names[kind])}; expected 1 to {most}, separated by spaces")
    every = names["gates"] + names["states"]
    for name in every:
        if not name.isidentifier() or name in FUNCTIONS:
            raise ValueError(f"{name!r} cannot name a gate or a state; expected an identifier that is no function")
        if every.count(name) > 1:
            raise ValueError(f"{name!r} names more than one gate or state")
    count = len(names["gates"])
    recurrent = count if recurrent_gates is None else recurrent_gates
    inputs = count if input_gates is None else input_gates
    for kind, number in (("recurrent_gates", recurrent), ("input_gates", inputs)):
        if not 1 <= number <= count:
            raise ValueError(f"{kind} is {number}; expected 1 to {count}, the number of gates")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"text has {len(text)} characters; expected at most {MOST_CHARACTERS}")
    return defined_cell(json.dumps([text, names["gates"], names["states"], recurrent, inputs]))


@functools.lru_cache(maxsize=256)
def defined_cell(definition: str) -> Cell:
    """The cell of an ``expression_cell``'s ``definition``, the form in which it passes through PyTorch's operators."""
    text, gates, states, recurrent, inputs = json.loads(definition)
    return Cell(recurrent, inputs, len(gates), len(states), _parse(text, gates, states), definition)


def _parse(text: str, gates: list[str], states: list[str]) -> Program:
    try:
        statements = ast.parse(textwrap.dedent(text).strip()).body
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno} of the cell: {error.msg} in {(error.text or '').strip()!r}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"the cell cannot be parsed: {error}") from None
    graph, used, assigned = Graph(), set[str](), set[str]()
    names = {name: graph.add("gate", index=i) for i, name in enumerate(gates)}
    names |= {name: graph.add("prev", index=i) for i, name in enumerate(states)}
    for statement in statements:
        where = f"line {statement.lineno} of the cell"
        terms = [node for node in ast.walk(statement) if isinstance(node, ast.expr)]
        if len(terms) + len(graph.operations) > MOST_TERMS:
            raise ValueError(f"{where}: the cell has more than {MOST_TERMS} terms")
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise ValueError(f"{where}: {_shown(statement)} is not NAME = EXPRESSION")
        used |= {node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)} - assigned
        target = statement.targets[0].id
        if target in FUNCTIONS:
            raise ValueError(f"{where}: {target!r} is a function and cannot be assigned")
        names[target] = _expression(statement.value, names, graph, where)
        assigned.add(target)
    for state in states:
        if state not in assigned:
            raise ValueError(f"state {state!r} is never assigned; the cell assigns {', '.join(sorted(assigned))}")
    for gate in gates:
        if gate not in used:
            raise ValueError(f"gate {gate!r} is never used")
    return Program(tuple(graph.operations), tuple(names[state] for state in states))


def _expression(node: ast.expr, names: dict[str, int], graph: Graph, where: str) -> int:
    if isinstance(node, ast.Name):
        if node.id in FUNCTIONS:
            raise ValueError(f"{where}: {node.id!r} is a function; write {node.id}(...)")
        if node.id not in names:
            raise ValueError(f"{where}: unknown name {node.id!r}{_nearest(node.id, names)}")
        return names[node.id]
    number = node.value if isinstance(node, ast.Constant) else None
    if isinstance(number, int | float) and not isinstance(number, bool):
        if not abs(number) <= FLOAT_MAX:
            raise ValueError(f"{where}: {_shown(node)} is beyond float32")
        return graph.add("constant", value=float(number))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return graph.add("negative", _expression(node.operand, names, graph, where))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = (_expression(side, names, graph, where) for side in (node.left, node.right))
        return graph.add(OPERATORS[type(node.op)], left, right)
    if isinstance(node, ast.Call):
        return _call(node, names, graph, where)
    allowed = f"numbers, names, + - * /, {', '.join(FUNCTIONS)}"
    raise ValueError(f"{where}: {_shown(node)} is not supported; expected {allowed}")


def _call(node: ast.Call, names: dict[str, int], graph: Graph, where: str) -> int:
    if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
        name = ast.unparse(node.func)
        raise ValueError(f"{where}: unsupported function {name!r}{_nearest(name.split('.')[-1], FUNCTIONS)}")
    kind = node.func.id
    if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
        raise ValueError(f"{where}: {_shown(node)}: expected plain arguments")
    many = kind in ("min", "max")
    if len(node.args) < 2 if many else len(node.args) != 1:
        raise ValueError(f"{where}: {kind} got {len(node.args)} arguments; expected {'2 or more' if many else '1'}")
    arguments = [_expression(a, names, graph, where) for a in node.args]
    if not many:
        return graph.add(kind, arguments[0])
    return functools.reduce(lambda a, b: graph.add(kind, a, b), arguments)


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(known)}"


def differentiate(program: Program, gates: int) -> tuple[Graph, list[int | None], list[int | None]]:
    """Append the reverse-mode derivative of the new states, whose gradients are the leaves ``dnext``.

    Besides the kinds of the language it uses ``share`` (a, b, d): d where a > b, d / 2 where they are equal, else 0;
    and ``where_positive`` (a, d): d where a > 0, else 0.

    Returns:
        The graph, whose first operations are the program's; the numbers of the gradients of the ``gates``, and of the
        previous states, None where a gradient is zero throughout.
    """
    graph = Graph(list(program.operations), {o: i for i, o in enumerate(program.operations)})
    add, adjoint = graph.add, dict[int, int]()

    def flow(to: int, gradient: int) -> None:
        if graph.operations[to].kind != "constant":
            adjoint[to] = add("+", adjoint[to], gradient) if to in adjoint else gradient

    for state, output in enumerate(program.outputs):
        flow(output, add("dnext", index=state))
    one = add("constant", value=1.0)
    for y, operation in reversed(list(enumerate(program.operations))):
        if y not in adjoint or not operation.arguments:
            continue
        d, kind, a, b = adjoint[y], operation.kind, operation.arguments[0], operation.arguments[-1]
        if kind == "+":
            flow(a, d)
            flow(b, d)
        elif kind == "-":
            flow(a, d)
            flow(b, add("negative", d))
        elif kind == "*":
            flow(a, add("*", d, b))
            flow(b, add("*", d, a))
        elif kind == "/":
            flow(a, add("/", d, b))
            flow(b, add("negative", add("*", add("/", d, b), y)))
        elif kind == "negative":
            flow(a, add("negative", d))
        elif kind == "exp":
            flow(a, add("*", d, y))
        elif kind == "sigmoid":
            flow(a, add("*", add("*", d, y), add("-", one, y)))
        elif kind == "tanh":
            flow(a, add("*", d, add("-", one, add("*", y, y))))
        elif kind == "logsigmoid":
            flow(a, add("*", d, add("sigmoid", add("negative", a))))
        elif kind == "relu":
            flow(a, add("where_positive", a, d))
        else:
            flow(a, add("share", a, b, d) if kind == "max" else add("share", b, a, d))
            flow(b, add("share", b, a, d) if kind == "max" else add("share", a, b, d))
    leaves = [[graph.numbers.get(Operation(k, index=i)) for i in range(n)] for k, n in
              (("gate", gates), ("prev", len(program.outputs)))]  # fmt: skip
    to_gates, to_prev = ([adjoint.get(i) if i is not None else None for i in group] for group in leaves)
    return graph, to_gates, to_prev

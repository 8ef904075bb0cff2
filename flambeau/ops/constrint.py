"""ConstrINT: a small complete solver for constraints over positive integers, used to choose kernel tilings.

Pöppel, Beck, Hochreiter, "FlashRNN" (2024), section 5. A system is text: constraints joined by ``;`` (and) and ``|``
(or), grouped by brackets; ``==``, ``<=``, ``>=``, ``<``, ``>`` and ``!=`` between terms of ``+ - * ^ %`` and integers;
``A in [8, 16, 32]``; ``#`` starts a comment.

    tile * blocks == rows; tile <= 16 | blocks == 1; rows == 96; tile % 8 == 0
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from flambeau.files import write_bytes
from flambeau.ops.build import cache_folder

Assignment = dict[str, int]
MAX_VALUE = 1 << 20  # values a variable may take when nothing in the system bounds it
MAX_TEXT = 100_000
EXPANDED = 2048  # domains up to this size are narrowed value by value


class ConstraintError(ValueError):
    """The text is not a system of constraints; line and column of the fault are in the message."""


@dataclass(frozen=True)
class Term:
    """An integer (``value``), a variable (``name``) or an operation on two terms."""

    operator: str
    operands: tuple["Term", ...] = ()
    name: str = ""
    value: int = 0


@dataclass(frozen=True)
class Constraint:
    """A comparison of two terms, ``in`` a list of integers, or ``;`` / ``|`` over other constraints."""

    operator: str
    parts: tuple["Constraint", ...] = ()
    terms: tuple[Term, ...] = ()
    values: tuple[int, ...] = ()


# ---------------------------------------------------------------- text

_TOKEN = re.compile(r"\s+|#[^\n]*|(==|!=|<=|>=|[<>;|()\[\],+\-*^%]|\d+|[A-Za-z_]\w*)")


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise ConstraintError(f"the text has {len(text)} characters; expected at most {MAX_TEXT}")
        self.text, self.tokens, self.at, self.depth = text, [], 0, 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"unexpected character {text[position]!r}", position)
            if match[1]:
                self.tokens.append((match[1], position))
            position = match.end()
        self.tokens.append(("", len(text)))

    def error(self, message: str, position: int | None = None) -> ConstraintError:
        position = self.tokens[self.at][1] if position is None else position
        line = self.text.count("\n", 0, position) + 1
        column = position - self.text.rfind("\n", 0, position)
        return ConstraintError(f"line {line}, column {column}: {message}")

    @property
    def next(self) -> str:
        return self.tokens[self.at][0]

    def take(self, *expected: str) -> str:
        token = self.next
        if expected and token not in expected:
            raise self.error(f"expected {' or '.join(map(repr, expected))}, got {token or 'the end'!r}")
        self.at += 1
        return token

    def conjunction(self) -> Constraint:
        parts = []
        while self.next not in ("", ")"):
            parts.append(self.disjunction())
            if self.next not in ("", ")"):
                self.take(";")
        return parts[0] if len(parts) == 1 else Constraint(";", tuple(parts))

    def disjunction(self) -> Constraint:
        parts = [self.comparison()]
        while self.next == "|":
            self.take()
            parts.append(self.comparison())
        return parts[0] if len(parts) == 1 else Constraint("|", tuple(parts))

    def comparison(self) -> Constraint:
        if self.next == "(" and self._brackets_a_constraint():
            self.take("(")
            self.nested()
            inner = self.conjunction()
            self.depth -= 1
            self.take(")")
            return inner
        left = self.sum()
        operator = self.take("==", "!=", "<=", ">=", "<", ">", "in")
        if operator != "in":
            return Constraint(operator, terms=(left, self.sum()))
        self.take("[")
        values = [self.integer()]
        while self.take(",", "]") == ",":
            values.append(self.integer())
        return Constraint("in", terms=(left,), values=tuple(values))

    def _brackets_a_constraint(self) -> bool:
        depth = 0
        for token, _ in self.tokens[self.at :]:
            depth += (token == "(") - (token == ")")
            if depth == 0:
                return False
            if token in ("==", "!=", "<=", ">=", "<", ">", "in", ";", "|"):
                return True
        return False

    def nested(self) -> None:
        self.depth += 1
        if self.depth > 50:
            raise self.error("brackets nested deeper than 50")

    def integer(self) -> int:
        if not self.next.isdigit():
            raise self.error(f"expected an integer, got {self.next or 'the end'!r}")
        if len(self.next) > 18:
            raise self.error("integer of more than 18 digits")
        return int(self.take())

    def sum(self) -> Term:
        term = self.product()
        while self.next in ("+", "-"):
            term = Term(self.take(), (term, self.product()))
        return term

    def product(self) -> Term:
        term = self.power()
        while self.next in ("*", "%"):
            term = Term(self.take(), (term, self.power()))
        return term

    def power(self) -> Term:
        term = self.atom()
        if self.next == "^":
            self.take()
            exponent = self.integer()
            if exponent > 16:
                raise self.error(f"exponent {exponent} above 16")
            term = Term("^", (term,), value=exponent)
        return term

    def atom(self) -> Term:
        if self.next == "(":
            self.take()
            self.nested()
            term = self.sum()
            self.depth -= 1
            self.take(")")
            return term
        if self.next.isdigit():
            return Term("integer", value=self.integer())
        if self.next.isidentifier() and self.next != "in":
            return Term("variable", name=self.take())
        raise self.error(f"expected a variable, an integer or '(', got {self.next or 'the end'!r}")


def parse(text: str) -> Constraint:
    """Read a system; raises ``ConstraintError`` with line and column."""
    parser = _Parser(text)
    system = parser.conjunction()
    if parser.next:
        raise parser.error(f"unexpected {parser.next!r}")
    return system


# ---------------------------------------------------------------- meaning

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def variables(item: Constraint | Term) -> dict[str, None]:
    """Names in order of first appearance."""
    if isinstance(item, Term):
        found = {item.name: None} if item.operator == "variable" else {}
        children: Sequence[Constraint | Term] = item.operands
    else:
        found, children = {}, (*item.parts, *item.terms)
    for child in children:
        found |= variables(child)
    return found


def _value(term: Term, at: Mapping[str, int]) -> int:
    if term.operator == "integer":
        return term.value
    if term.operator == "variable":
        return at[term.name]
    a, *rest = (_value(t, at) for t in term.operands)
    if term.operator == "^":
        return int(a**term.value)
    b = rest[0]
    if term.operator == "+":
        return a + b
    if term.operator == "-":
        return a - b
    if term.operator == "*":
        return a * b
    return a % b if b else -1  # a remainder by zero equals nothing: every true remainder is at least 0


def satisfied(constraint: Constraint, at: Mapping[str, int]) -> bool:
    """Whether an assignment of all variables satisfies the constraint."""
    if constraint.operator == ";":
        return all(satisfied(part, at) for part in constraint.parts)
    if constraint.operator == "|":
        return any(satisfied(part, at) for part in constraint.parts)
    left = _value(constraint.terms[0], at)
    if constraint.operator == "in":
        return left in constraint.values
    return _COMPARE[constraint.operator](left, _value(constraint.terms[1], at))


# ---------------------------------------------------------------- propagation on intervals and value lists

Domain = range | tuple[int, ...]
Bounds = tuple[int, int]


def _bounds(term: Term, domains: Mapping[str, Domain]) -> Bounds:
    if term.operator == "integer":
        return term.value, term.value
    if term.operator == "variable":
        return domains[term.name][0], domains[term.name][-1]
    (low, high), *rest = (_bounds(t, domains) for t in term.operands)
    if term.operator == "^":
        corners = [low**term.value, high**term.value]
        return (0 if low < 0 < high and term.value % 2 == 0 else min(corners)), max(corners)
    low2, high2 = rest[0]
    if term.operator == "+":
        return low + low2, high + high2
    if term.operator == "-":
        return low - high2, high - low2
    if term.operator == "*":
        corners = [a * b for a in (low, high) for b in (low2, high2)]
        return min(corners), max(corners)
    if low2 <= 0:
        return min(low2, -1), max(high, high2, 0)
    if 0 <= low <= high < low2:
        return low, high
    return 0, min(high2 - 1, high) if low >= 0 else high2 - 1


def _possible(constraint: Constraint, domains: Mapping[str, Domain]) -> bool:
    """False only if no assignment within the domains satisfies the constraint."""
    if constraint.operator == ";":
        return all(_possible(part, domains) for part in constraint.parts)
    if constraint.operator == "|":
        return any(_possible(part, domains) for part in constraint.parts)
    low, high = _bounds(constraint.terms[0], domains)
    if constraint.operator == "in":
        return any(low <= v <= high for v in constraint.values)
    low2, high2 = _bounds(constraint.terms[1], domains)
    if constraint.operator == "==":
        if low == high and constraint.terms[1].operator == "%":
            return _possible(Constraint("==", terms=constraint.terms[::-1]), domains)
        remainder = constraint.terms[0]
        if remainder.operator == "%" and low2 == high2:
            fixed = [_bounds(t, domains) for t in remainder.operands]
            if all(a == b for a, b in fixed):
                return fixed[1][0] != 0 and fixed[0][0] % fixed[1][0] == low2
        return low <= high2 and low2 <= high
    if constraint.operator == "!=":
        return not (low == high == low2 == high2)
    if constraint.operator in ("<=", "<"):
        return low < high2 or (constraint.operator == "<=" and low == high2)
    return high > low2 or (constraint.operator == ">=" and high == low2)


def _narrow(domain: Domain, possible: Callable[[Domain], bool]) -> Domain:
    """Drop values that cannot be: one by one in small domains, by bisection from both ends in large ones."""
    if len(domain) <= EXPANDED:
        kept = tuple(v for v in domain if possible((v,)))
        return domain if len(kept) == len(domain) else kept
    for from_end in (False, True):
        chunk = len(domain) // 2
        while chunk and len(domain):
            part = domain[-chunk:] if from_end else domain[:chunk]
            if possible(part):
                chunk //= 2
            else:
                domain = domain[:-chunk] if from_end else domain[chunk:]
                chunk = min(chunk, len(domain))
    return domain


def _possible_with(constraint: Constraint, domains: Mapping[str, Domain], name: str, values: Domain) -> bool:
    return _possible(constraint, {**domains, name: values})


def _propagate(constraints: Sequence[Constraint], domains: dict[str, Domain]) -> bool:
    """Narrow the domains until nothing changes; False if one is empty."""
    waiting = list(constraints)
    names = {id(c): tuple(variables(c)) for c in constraints}
    while waiting:
        constraint = waiting.pop()
        for name in names[id(constraint)]:
            before = domains[name]
            after = _narrow(before, partial(_possible_with, constraint, domains, name))
            if not after:
                return False
            if len(after) < len(before):
                domains[name] = after
                waiting += [c for c in constraints if name in names[id(c)] and not any(c is w for w in waiting)]
        if not names[id(constraint)] and not _possible(constraint, domains):
            return False
    return True


# ---------------------------------------------------------------- search


def _search(
    constraints: Sequence[Constraint], domains: dict[str, Domain], order: Sequence[tuple[str, bool]]
) -> Iterator[Assignment]:
    if not _propagate(constraints, domains):
        return
    undecided = next((choice for choice in order if len(domains[choice[0]]) > 1), None)
    if undecided is None:
        assignment = {name: values[0] for name, values in domains.items()}
        if all(satisfied(c, assignment) for c in constraints):
            yield assignment
        return
    name, largest = undecided
    for value in reversed(domains[name]) if largest else domains[name]:
        yield from _search(constraints, domains | {name: (value,)}, order)


def solve(
    text: str,
    prefer: Sequence[tuple[str, str]] = (),
    n: int | None = 1,
    exclude: Sequence[Mapping[str, int]] = (),
    bounds: Mapping[str, tuple[int, int]] | None = None,
    cache: bool = False,
) -> list[Assignment]:
    """The first ``n`` solutions (all for None) in the order of preference.

    Complete: every solution within the bounds is found, each once, and each returned one satisfies every constraint.

    Args:
        text: the system, see the module.
        prefer: ``(variable, "smallest" or "largest")`` in order of importance. Variables not named follow in order of
            appearance, smallest first. Solutions come in this lexicographic order.
        exclude: assignments of some or all variables that no solution may contain (a tiling whose kernel failed).
        bounds: inclusive limits of variables; 1 to 2^20 without.
        cache: keep the answer on disk and take it from there the next time.

    Raises:
        ConstraintError: the text does not parse (with line and column).
        ValueError: an argument names an unknown variable, direction or empty range.
    """
    system = parse(text)
    names = list(variables(system))
    for name in (*(v for v, _ in prefer), *(v for e in exclude for v in e), *(bounds or {})):
        if name not in names:
            raise ValueError(f"{name!r} is no variable of the system; it has {', '.join(names) or 'none'}")
    for name, direction in prefer:
        if direction not in ("smallest", "largest"):
            raise ValueError(f"prefer asks for the {direction!r} {name}; expected smallest or largest")
    for name, (low, high) in (bounds or {}).items():
        if not 1 <= low <= high:
            raise ValueError(f"bounds of {name} are {low} to {high}; expected 1 <= low <= high")
    if n is not None and n < 1:
        raise ValueError(f"n is {n}; expected at least 1, or None for all")
    key = json.dumps([text, list(prefer), n, [dict(e) for e in exclude], dict(bounds or {})], sort_keys=True)
    path = cache_folder() / "constrint" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if cache and path.exists():
        stored = json.loads(path.read_text())
        if all(list(s) and satisfied(system, s) for s in stored):
            return [dict(s) for s in stored]

    constraints = list(system.parts) if system.operator == ";" else [system]
    domains: dict[str, Domain] = {name: range(1, MAX_VALUE + 1) for name in names}
    domains |= {name: range(low, high + 1) for name, (low, high) in (bounds or {}).items()}
    for other in exclude:
        apart = [Constraint("!=", terms=(Term("variable", name=k), Term("integer", value=v))) for k, v in other.items()]
        constraints.append(Constraint("|", tuple(apart)))
    ordered = {name: direction == "largest" for name, direction in prefer}
    order = list((ordered | {name: False for name in names if name not in ordered}).items())
    solutions: list[Assignment] = []
    for solution in _search(constraints, domains, order):
        solutions.append(solution)
        if len(solutions) == n:
            break
    if cache:
        write_bytes(path, json.dumps(solutions).encode())
    return solutions

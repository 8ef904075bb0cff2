"""Templates: a value with hyper values in it, its search space, and the way between programs and DNA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flambeau.symbolic.containers import adopt
from flambeau.symbolic.dna import DNA
from flambeau.symbolic.errors import SymbolicError
from flambeau.symbolic.fields import check, element, shorten
from flambeau.symbolic.hyper import DECIDER, Choice, Evolve, FloatValue, Hyper, IntValue, is_lazy
from flambeau.symbolic.node import Node
from flambeau.symbolic.paths import join
from flambeau.symbolic.space import Point, Space
from flambeau.symbolic.spec import Choices, Custom, Float
from flambeau.symbolic.tree import Tree, copy_value
from flambeau.symbolic.values import same


class Template:
    """A value with hyper values: ``decode`` makes programs of it, ``encode`` finds the DNA of a program.

    Attributes:
        value: a copy of the value, with its hyper values.
        spec: the search space, with one decision point per hyper value (one per name for those that are named).
    """

    def __init__(self, value: Any, where: Callable[[Hyper], bool] | None = None):
        self.value = value.clone() if isinstance(value, Tree) else adopt(value)
        self._layout = Layout(self.value, "", {}, where or every)

    @property
    def spec(self) -> Space:
        """The search space."""
        return self._layout.space

    @property
    def space_size(self) -> int | float:
        """How many programs there are: 1 without a hyper value, ``math.inf`` with a float or an unbounded space."""
        return self.spec.size

    def decode(self, dna: DNA) -> Any:
        """The program that `dna` decides on: a new symbolic value without hyper values.

        Raises:
            SymbolicError: `dna` is not of this space.
        """
        self.spec.validate(dna)
        return self._layout.decode(dna.children, {})

    def encode(self, value: Any) -> DNA:
        """The DNA that decodes to `value`.

        Raises:
            SymbolicError: `value` is not a program of this space; the message has the first path that does not fit.
        """
        value = value if isinstance(value, Tree) else adopt(value)
        return DNA(None, self._layout.encode(value, {}, ""))

    def __repr__(self) -> str:
        return f"Template({self.value!r}, {self.space_size} programs)"


def template(value: Any, where: Callable[[Hyper], bool] | None = None) -> Template:
    """The template of a value: a node, a list, tuple or dict, or a hyper value itself.

    Args:
        where: which hyper values are decided here; the others stay in the programs as they are, to be decided by a
            template of those (search one part of a space inside another, or one after the other).

    Raises:
        SymbolicError: unequal hyper values of one name.
    """
    return Template(value, where)


def every(hyper: Hyper) -> bool:
    """Accepts every hyper value."""
    return True


class Layout:
    """Which hyper value of a value is decided by which decision point of its space.

    Args:
        scope: the named hyper values that are decided further out; they get no point here.

    A name that several points may meet in their candidates is decided here, before them, since it is one decision.
    """

    def __init__(self, value: Any, path: str, scope: dict[str, Hyper], where: Callable[[Hyper], bool]):
        self.value, self.path, self.where = value, path, where
        found = list(outermost(value, path, where))
        self.scope = dict(scope)
        self.own: list[HyperPoint] = []
        direct: dict[str, Hyper] = {}
        for at, hyper in found:
            if hyper.label is not None:
                _agree(self.scope | direct, hyper, at)
                direct.setdefault(hyper.label, hyper)
        met: dict[str, tuple[str, Hyper]] = {}
        lifted: dict[str, tuple[str, Hyper]] = {}
        for at, hyper in found:
            for name, (inner_at, inner, several) in _named_inside(hyper, at, where).items():
                _agree(self.scope | direct | {n: h for n, (_, h) in met.items()}, inner, inner_at)
                if (several or name in met) and name not in self.scope and name not in direct:
                    lifted.setdefault(name, met.get(name, (inner_at, inner)))
                met.setdefault(name, (inner_at, inner))
        self.scope |= direct | {name: hyper for name, (_, hyper) in lifted.items()}
        self.own += [HyperPoint(hyper, at, self.scope, where) for at, hyper in lifted.values()]
        seen: set[str] = set()
        for at, hyper in found:
            if hyper.label is None or (hyper.label not in scope and hyper.label not in seen):
                self.own.append(HyperPoint(hyper, at, self.scope, where))
                seen |= {hyper.label} if hyper.label is not None else set()
        self.space = Space([own.point for own in self.own])
        self.found = found

    def decode(self, children: Sequence[DNA], names: dict[str, tuple[HyperPoint, DNA]]) -> Any:
        """The value with its hyper values decided by `children`; `names` collects the named decisions.

        Raises:
            SymbolicError: two lazy candidates decide one name differently, which the space could not know before.
        """
        decided: dict[int, DNA] = {}
        points = {id(own.hyper): own for own in self.own}
        for own, child in zip(self.own, children):
            decided[id(own.hyper)] = child
            if own.hyper.label is not None:
                known, made = names.setdefault(own.hyper.label, (own, child))
                if made != child or not known.hyper.equals(own.hyper):
                    raise SymbolicError(
                        f"{own.path}: the decision {own.hyper.label!r} was made otherwise at {known.path}; "
                        "use its hyper value outside the lazy candidates too, so that it is decided before them"
                    )
        swap: dict[int, Any] = {}
        for _, hyper in self.found:
            if hyper.label is not None:
                own, dna = names[hyper.label]
            else:
                own, dna = points[id(hyper)], decided[id(hyper)]
            swap[id(hyper)] = own.decode(dna, names)
        return copy_value(self.value, swap)

    def encode(self, value: Any, names: dict[str, DNA], path: str) -> list[DNA]:
        """The decisions that make `value`; named decisions met on the way are added to `names`."""
        decided: dict[int, DNA] = {}
        points = {id(own.hyper): own for own in self.own}
        outer: dict[Any, HyperPoint] = {own.hyper.label: own for own in self.own if own.hyper.label is not None}

        def match(pattern: Any, got: Any, at: str) -> None:
            if isinstance(pattern, Hyper) and self.where(pattern):
                own = points.get(id(pattern)) or outer.get(pattern.label)
                own = own or HyperPoint(pattern, at, self.scope, self.where)
                dna = own.encode(got, names, at)
                if pattern.label is not None:
                    if names.setdefault(pattern.label, dna) != dna:
                        raise SymbolicError(f"{at}: the decision {pattern.label!r} was made otherwise elsewhere")
                decided[id(own.hyper)] = dna
            elif isinstance(pattern, Tree) and not isinstance(pattern, Hyper):
                _match_parts(pattern, got, at, match)
            elif not same(pattern, got):
                raise SymbolicError(f"{at or 'the root'}: expected {shorten(pattern)}, got {shorten(got)}")

        match(self.value, value, path)
        result = []
        for own in self.own:
            dna = names.get(own.hyper.label) if own.hyper.label is not None else decided.get(id(own.hyper))
            result.append(own.point.first() if dna is None else dna)
        return result


class HyperPoint:
    """A hyper value and its decision point, with the layouts of its candidates (made when first needed)."""

    def __init__(self, hyper: Hyper, path: str, scope: dict[str, Hyper], where: Callable[[Hyper], bool]):
        self.hyper, self.path, self.scope, self.where = hyper, path, scope, where
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.point = self._make_point()

    def _make_point(self) -> Point:
        hyper, args = self.hyper, self.hyper._args
        named = {"name": hyper.label, "hints": args["hints"]}
        if isinstance(hyper, FloatValue):
            return Float(self.path, args["lo"], args["hi"], args["scale"], **named)
        if isinstance(hyper, IntValue):
            return Choices(self.path, args["hi"] - args["lo"] + 1, **named)
        if isinstance(hyper, Evolve):
            return Custom(self.path, self._initial, self._mutate, self._read, **named)
        assert isinstance(hyper, Choice)
        constant = not any(is_lazy(c) or any(True for _ in outermost(c, "", self.where)) for c in hyper.candidates)
        return Choices(
            self.path,
            len(hyper.candidates),
            None if constant else lambda index, position: self.layout(index, position).space,
            k=hyper.count,
            distinct=hyper.distinct,
            sorted=hyper.ascending,
            labels=[f"{c.__name__}() when chosen" if is_lazy(c) else shorten(c, 60) for c in hyper.candidates],
            **named,
        )

    def layout(self, index: int, position: int) -> Layout:
        """The layout of candidate `index` when it is chosen as number `position`."""
        if (index, position) not in self._layouts:
            assert isinstance(self.hyper, Choice)
            candidate = self.hyper.candidates[index]
            place = self.path if self.hyper.count == 1 else join(self.path, position)
            path = join(join(place, "candidates"), index)
            if is_lazy(candidate):
                candidate = self._expand(candidate, path)
            self._layouts[index, position] = Layout(candidate, path, self.scope, self.where)
        return self._layouts[index, position]

    def _expand(self, function: Any, path: str) -> Any:
        token = DECIDER.set(None)
        try:
            value = adopt(function())
        finally:
            DECIDER.reset(token)
        return adopt(check(element(self.hyper._hint("candidates"), 0), value, path))

    @property
    def _many(self) -> bool:
        return isinstance(self.hyper, Choice) and self.hyper.many

    def decode(self, dna: DNA, names: dict[str, tuple[HyperPoint, DNA]]) -> Any:
        """The value that `dna` decides on, without a parent."""
        hyper = self.hyper
        if isinstance(hyper, FloatValue):
            return float(dna.value)  # type: ignore[arg-type]
        if isinstance(hyper, IntValue):
            return hyper._args["lo"] + dna.value
        if isinstance(hyper, Evolve):
            return self._read(dna.value)  # type: ignore[arg-type]
        picks = [dna] if self.point.k == 1 else dna.children  # type: ignore[attr-defined]
        values = [self.layout(pick.value, i).decode(pick.children, names) for i, pick in enumerate(picks)]  # type: ignore[arg-type]
        return adopt(values) if self._many else values[0]

    def encode(self, value: Any, names: dict[str, DNA], path: str) -> DNA:
        """The decision that makes `value`."""
        hyper, args = self.hyper, self.hyper._args
        if isinstance(hyper, FloatValue):
            if not isinstance(value, float) or not args["lo"] <= value <= args["hi"]:
                raise SymbolicError(f"{path}: expected a float in [{args['lo']}, {args['hi']}], got {shorten(value)}")
            return DNA(value)
        if isinstance(hyper, IntValue):
            if isinstance(value, bool) or not isinstance(value, int) or not args["lo"] <= value <= args["hi"]:
                raise SymbolicError(f"{path}: expected an int in [{args['lo']}, {args['hi']}], got {shorten(value)}")
            return DNA(value - args["lo"])
        if isinstance(hyper, Evolve):
            return DNA(_text(value))
        point: Choices = self.point  # type: ignore[assignment]
        if not self._many:
            return self._encode_pick(value, 0, range(point.n), names, path)
        if not isinstance(value, list) or len(value) != point.k:
            raise SymbolicError(f"{path}: expected a list of {point.k}, got {shorten(value)}")
        picks: list[DNA] = []
        for i, item in enumerate(value):
            options = point.options([p.value for p in picks])  # type: ignore[misc]
            picks.append(self._encode_pick(item, i, options, names, join(path, i)))
        return point._join(picks)

    def _encode_pick(self, value: Any, position: int, options: Sequence[int], names: dict[str, DNA], path: str) -> DNA:
        for index in options:
            attempt = dict(names)
            try:
                children = self.layout(index, position).encode(value, attempt, path)
            except SymbolicError:
                continue
            names.update(attempt)
            return DNA(index, children)
        raise SymbolicError(f"{path or 'the root'}: {shorten(value)} is no candidate of {shorten(self.hyper)}")

    def _initial(self) -> str:
        return _text(self.hyper._args["initial"])

    def _mutate(self, text: str, rng: Any) -> str:
        return _text(self.hyper._args["mutate"](self._read(text), rng))

    def _read(self, text: str) -> Any:
        from flambeau.symbolic.serialization import from_json

        value = from_json(text)
        check(self.hyper._own_hint(), value, self.path)
        return value


def outermost(value: Any, path: str, where: Callable[[Hyper], bool]) -> Iterator[tuple[str, Hyper]]:
    """The hyper values in a value that are not inside another, in tree order, with their paths."""
    if isinstance(value, Hyper):
        if where(value):
            yield path, value
    elif isinstance(value, Tree):
        for key, item in value._items():
            if isinstance(item, Tree):
                yield from outermost(item, join(path, key), where)


def _named_inside(hyper: Hyper, path: str, where: Callable[[Hyper], bool]) -> dict[str, tuple[str, Hyper, bool]]:
    """The named hyper values in the candidates of a choice, at any depth: path, hyper value, and whether several of the
    candidates chosen together may meet it. Those of lazy candidates are not known."""
    several = isinstance(hyper, Choice) and hyper.count > 1
    found: dict[str, tuple[str, Hyper, bool]] = {}
    parts = list(hyper.candidates) if isinstance(hyper, Choice) else []
    for index, candidate in enumerate(parts):
        here: dict[str, tuple[str, Hyper]] = {}
        for at, inner in outermost(candidate, join(join(path, "candidates"), index), where):
            below = {name: entry[:2] for name, entry in _named_inside(inner, at, where).items()}
            own = {inner.label: (at, inner)} if inner.label is not None else {}
            for name, entry in (own | below).items():
                here.setdefault(name, entry)
        for name, (at, inner) in here.items():
            if name in found:
                _agree({name: found[name][1]}, inner, at)
            found[name] = (at, inner, several and (name in found or not hyper.distinct))  # type: ignore[attr-defined]
    return found


def _agree(known: dict[str, Hyper], hyper: Hyper, path: str) -> None:
    other = known.get(hyper.label or "")
    if other is not None and not other.equals(hyper):
        raise SymbolicError(f"{path}: {shorten(hyper)} has the name of another decision, {shorten(other)}")


def _match_parts(pattern: Tree, got: Any, path: str, match: Any) -> None:
    if isinstance(pattern, Node):
        if not isinstance(got, Node) or got.target != pattern.target or got.late != pattern.late:
            raise SymbolicError(f"{path or 'the root'}: expected a {pattern.symbol.label}, got {shorten(got)}")
        parts = got._args
    else:
        if type(got) is not type(pattern):
            raise SymbolicError(f"{path or 'the root'}: expected a {type(pattern).__name__}, got {shorten(got)}")
        parts = dict(got._items())  # type: ignore[arg-type]
    expected = dict(pattern._items())
    if parts.keys() != expected.keys():
        raise SymbolicError(f"{path or 'the root'}: expected the parts {list(expected)}, got {list(parts)}")
    for key, item in expected.items():
        match(item, parts[key], join(path, key))  # type: ignore[index]


def _text(value: Any) -> str:
    import json

    from flambeau.symbolic.serialization import to_json

    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))

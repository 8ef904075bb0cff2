"""Symbols, nodes, typed fields and building."""

import collections.abc
import enum
import functools
import math
import pathlib
import typing
from typing import Annotated, Any, Callable, Literal, Optional  # noqa: UP035 - annotations as users write them

import pytest

from flambeau.symbolic import Range, SymbolicError, build, clone, gt, inferred, lt, oneof, symbolize


class Base:
    """A class to be asked for."""

    def __init__(self, x: int = 1):
        self.x = x


class Derived(Base):
    """A class that is one of those."""


class Runner:
    """A class whose instances can be called."""

    def __call__(self):
        return 1


class Colour(enum.Enum):
    RED = 1


def make_base(x: int = 2) -> "Base":
    """A function that says what it returns."""
    return Base(x)


def untold(x=3):
    """A function that does not."""
    return Base(x)


D, R, MB, U = symbolize(Derived), symbolize(Runner), symbolize(make_base), symbolize(untold)


def field(annotation):
    """The symbol of a function with one parameter of that annotation."""

    def function(value):
        return value

    function.__annotations__["value"] = annotation
    return symbolize(function)


ACCEPTED = [
    (int, 3, 3),
    (float, 3, 3.0),
    (bool, True, True),
    (str, "x", "x"),
    (None, None, None),
    (int | None, None, None),
    (Optional[float], 2, 2.0),  # noqa: UP045
    (int | float, 2, 2),
    (float | int, 2, 2),
    (Literal["a", 1], 1, 1),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (list[int], (1, 2), [1, 2]),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, float], (1, 2), (1, 2.0)),
    (tuple[()], (), ()),
    (dict[str, float], {"x": 1}, {"x": 1.0}),
    (collections.abc.Sequence[int], (1, 2), (1, 2)),
    (collections.abc.Mapping[str, int], {"x": 1}, {"x": 1}),
    (list, [1, "x"], [1, "x"]),
    (pathlib.Path, "a/b", pathlib.Path("a/b")),
    (Colour, Colour.RED, Colour.RED),
    (type[Base], Derived, Derived),
    (type, int, int),
    (Callable[[int], int], untold, untold),
    (Callable, Runner, Runner),
    (Annotated[int, Range(1, None)], 1, 1),
    (Annotated[float | None, Range(0, 1)], None, None),
    (Any, object, object),
    ("int", 3, 3),
    ("Unknown[Nowhere]", "x", "x"),
    (typing.TypeVar("T"), 3, 3),
    (typing.SupportsFloat, "x", "x"),
    (list[int] | int, [1], [1]),
]


@pytest.mark.parametrize(("annotation", "given", "kept"), ACCEPTED)
def test_accepted_values_build_to_what_is_expected(annotation, given, kept):
    built = field(annotation)(given).build()
    assert built == kept and type(built) is type(kept)


REFUSED = [
    (int, True),
    (int, 1.0),
    (int, "1"),
    (int, None),
    (float, "1"),
    (float, True),
    (bool, 1),
    (str, 1),
    (None, 1),
    (int | None, "x"),
    (Literal["a", 1], "b"),
    (Literal["a", 1], True),
    (list[int], [1, "x"]),
    (list[int], "12"),
    (list[int], {1: 2}),
    (tuple[int, float], (1,)),
    (tuple[int, ...], 3),
    (dict[str, float], {"x": "y"}),
    (dict[str, float], {1: 1.0}),
    (dict[str, float], [1]),
    (collections.abc.Sequence[str], "text"),
    (pathlib.Path, 3),
    (Colour, 1),
    (Base, 3),
    (Base, Derived),
    (type[Base], int),
    (type[Base], Derived()),
    (Callable[[int], int], 3),
    (Annotated[int, Range(1, None)], 0),
    (Annotated[float, Range(0, 1)], 1.01),
    (Annotated[float, Range(0, 1)], math.nan),
    (list[Annotated[int, Range(1, 5)]], [1, 6]),
    ("int | None", "x"),
]


@pytest.mark.parametrize(("annotation", "given"), REFUSED)
def test_refused_values_name_the_path_the_annotation_and_the_value(annotation, given):
    with pytest.raises(SymbolicError, match=r"function\.value.*(expected|in \[)"):
        field(annotation)(given)


def test_nodes_are_judged_by_what_they_build():
    wants_base = field(Base)
    for fits in (D(), MB(), U(), Base(), oneof([D(), MB()]), inferred()):
        wants_base(fits)
    for wrong in (R(), D.partial(), oneof([D(), R()]), [D()]):
        with pytest.raises(SymbolicError, match="expected Base"):
            wants_base(wrong)
    wants_call = field(Callable[[], int])
    for fits in (D.partial(), R(), U(), functools.partial(untold, 1)):
        wants_call(fits)
    with pytest.raises(SymbolicError, match="Callable"):
        wants_call(D())
    with pytest.raises(SymbolicError, match="expected int"):
        field(int)(D())
    field(Base | None)(D())
    field(list[Base])([D(), Base()])
    with pytest.raises(SymbolicError, match=r"function.value\[1\]: expected Base"):
        field(list[Base] | None)([D(), R()])


def test_jaxtyping_annotations_are_not_checked():
    jaxtyping = pytest.importorskip("jaxtyping")
    np = pytest.importorskip("numpy")
    field(jaxtyping.Float[np.ndarray, "a b"])("anything")
    field(jaxtyping.Float[np.ndarray, "a b"] | None)(3)
    assert field(int)(np.int64(3)).build() == 3 and type(field(float)(np.float32(0.5)).build()) is float


def plain(a, /, b: int = 2, *rest: int, c, d=(1, [2]), **more: float):
    """All kinds of parameters."""
    return a, b, rest, c, d, more


def test_calls_bind_like_python_and_build_the_same():
    symbol = symbolize(plain)
    for args, kwargs in [((1,), {"c": 3}), ((1, 5, 6, 7), {"c": 3, "d": 4, "e": 5}), ((1,), {"c": 3, "b": 9})]:
        assert symbol(*args, **kwargs).build() == plain(*args, **kwargs)
    node = symbol(1, 2, 3, 4, c=5, extra=6)
    assert (node["[1]"], node["rest[0]"], node.extra) == (4, 3, 6.0)
    assert list(node.args) == ["a", "b", "rest", "c", "d", "extra"]
    node.rebind({"[0]": 30, "new": 1})
    assert node.build() == (1, 2, (30, 4), 5, (1, [2]), {"extra": 6.0, "new": 1.0})
    for call, message in [
        (lambda: symbol(1), "plain: missing c"),
        (lambda: symbol(c=1), "missing a"),
        (lambda: symbol(1, 2, "x", c=1), r"plain\[0\]: expected int"),
        (lambda: symbol(1, 2, c=1, e="x"), "plain.e: expected float"),
        (lambda: D(y=1), "Derived: unknown argument 'y'; there are x"),
        (lambda: D(1, 2), "takes 1 positional"),
        (lambda: D(1, x=2), "Derived.x: given twice"),
    ]:
        with pytest.raises(SymbolicError, match=message):
            call()


def test_built_lists_and_dicts_are_ordinary_and_fresh():
    symbol = symbolize(plain)
    node = symbol([1, {"x": (D(5),)}], c=None)
    first, second = node.build(), node.build()
    assert type(first[0]) is list and type(first[0][1]) is dict and type(first[0][1]["x"]) is tuple
    assert first[0][1]["x"][0].x == 5 and first[0][1]["x"][0] is not second[0][1]["x"][0]
    first[4][1].append(3)
    assert plain(1, c=1)[4] == (1, [2]), "the default of the function is its own"
    assert build({"a": [D(1)]})["a"][0].x == 1 and build(3) == 3


def test_nothing_of_the_target_is_touched():
    before = dict(vars(Derived))
    symbolize(Derived)(3).build()
    assert dict(vars(Derived)) == before and symbolize(Derived) is D and symbolize(D) is D
    assert type(D().build()) is Derived


def test_late_bound_nodes_build_partials():
    late = symbolize(plain).partial(1, c=[D(7)])
    built = late.build()
    assert isinstance(built, functools.partial) and built.func is plain and built(2)[3][0].x == 7
    assert late.missing == [] and D.partial().missing == []
    holder = field(Any)(functools.partial(plain, 9))
    assert holder.missing == ["value.c"] and holder["value.b"] == 2
    holder.rebind({"value.c": 3})
    assert holder.build()() == (9, 2, (), 3, (1, [2]), {})
    with pytest.raises(AttributeError, match="'c' is missing"):
        symbolize(plain).partial(1).c  # noqa: B018
    with pytest.raises(SymbolicError, match="no argument 'zzz'"):
        field(int)(3).rebind(zzz=1)


def test_defaults_that_are_nodes_are_copied_into_each_tree():
    shared = D(1)

    def function(part=shared, *, parts=(shared,)):
        return part

    symbol = symbolize(function)
    one, two = symbol(), symbol()
    one.rebind({"part.x": 5, "parts[0].x": 6})
    assert (two["part.x"], shared.x, one.build().x) == (1, 1, 5) and shared.parent is None
    assert symbol.partial().build()().x == 1, "a default node is built for a late-bound function too"


def test_a_default_is_accepted_whatever_the_annotation_says():
    def function(rate: float = None, parts: list[int] = ("x",)):
        return rate, parts

    symbol = symbolize(function)
    node = symbol(None).rebind(rate=1)
    assert node.rebind(rate=None).build() == (None, ("x",))
    with pytest.raises(SymbolicError, match="function.rate: expected float"):
        symbol("x")


def test_reading():
    node = symbolize(plain)({"k": [D(4)]}, c=1)
    assert node.get("a.k[0].x") == 4 and node.has("a.k[0]") and not node.has("a.k[1]") and "d[1]" in node
    assert node.get("a.q", None) is None and node.a["k"][0].path == "a.k[0]" and node.a["k"][0].parent is node.a["k"]
    with pytest.raises(SymbolicError, match="a.k.0..y: .* no argument 'y'"):
        node.get("a.k[0].y")
    with pytest.raises(AttributeError, match="unknown"):
        D().y  # noqa: B018
    with pytest.raises(AttributeError, match="rebind"):
        node.c = 2
    assert repr(node) == "plain(a={'k': [Derived(x=4)]}, c=1)" and repr(D.partial()) == "Derived.partial()"
    strange = field(Any)({"a.b": 1, "c d": {"'": 2}, 3: 4})
    for path, part in {"value['a.b']": 1, "value['c d']": {"'": 2}, "value[3]": 4}.items():
        assert strange.get(path) == part
    assert strange.query(where=lambda v: v == 2) == {"value['c d'][\"'\"]": 2}


def test_comparison_is_by_type_and_value():
    assert D(1) == D(1) != D(2) and hash(D(1)) == hash(D(1)) and D(1) != D.partial(1)
    anything = field(Any)
    values = [anything(v) for v in (1, 1.0, True, math.nan, [1], (1,), {"a": 1}, None)]
    assert len(set(values)) == 8 and anything(math.nan) == anything(math.nan) != field(Any)(math.nan)
    assert lt(D(1), D(2)) and gt(D(2), D(1)) and not lt(D(1), D(1)) and lt([D(1), 2], [D(1), 3])
    assert lt(None, 1) and lt(1, "a") and lt("a", [1]) and sorted([D(3), D(1)])[0].x == 1
    assert clone([D(1)]) == [D(1)] and clone(3) == 3


def test_errors_while_building_say_where():
    def fails(x):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        field(Any)([symbolize(fails)(1)]).build()
    assert caught.value.__notes__ == ["while building value[0]: fails"] or "value[0]" in caught.value.__notes__[0]


@pytest.mark.parametrize("target", [3, "x", None, Derived(), functools.partial(plain)])
def test_only_classes_and_functions_are_symbolised(target):
    with pytest.raises(TypeError, match="class or a function"):
        symbolize(target)


def test_decorated_classes_and_methods():
    @symbolize
    class Local:
        def __init__(self, x: int):
            self.x = x

        @classmethod
        def double(cls, x: int):
            return cls(2 * x)

    assert Local(3).build().x == 3 and symbolize(Local.target.double)(3).build().x == 6
    assert symbolize(Local.target.double)(3) == symbolize(Local.target.double)(3)

"""Templates: names, conditions, parts of a space, evolved programs, and what is refused."""

import math
import random

import pytest

from flambeau.symbolic import (
    DNA,
    SymbolicError,
    build,
    digest,
    evolve,
    floatv,
    inferred,
    intv,
    manyof,
    oneof,
    permutate,
    symbolize,
    template,
)


class Net:
    """Something to search over."""

    def __init__(self, width: float = 1.0, depth: int = 1, parts: list[int] | None = None, other=None):
        self.width, self.depth, self.parts, self.other = width, depth, parts, other


def join(*nets, sep="+", **named):
    """A function with variable arguments."""
    return nets, sep, named


N, J = symbolize(Net), symbolize(join)


def programs(value):
    space = template(value)
    found = [space.decode(dna) for dna in space.spec.iter()]
    assert len({digest(v) for v in found}) == len(found) == space.space_size
    return found


def test_decoded_programs_build_and_leave_the_template_alone():
    second = oneof([N(depth=oneof([3, 4])), "none"])
    space = template(J(N(oneof([1, 2])), second, sep=oneof(["-", "/"]), extra=intv(1, 2)))
    before = digest(space.value)
    values = {repr(space.decode(dna)) for dna in space.spec.iter()}
    assert len(values) == space.space_size == 2 * 3 * 2 * 2
    decoded = space.decode(space.spec.from_numbers([1, 0, 1, 0, 1]))
    nets, sep, named = decoded.build()
    assert (nets[0].width, nets[1].depth, sep, named) == (2.0, 4, "-", {"extra": 2})
    decoded.rebind({"[0].width": 9})
    assert digest(space.value) == before and space.encode(space.decode(space.spec.first())) == space.spec.first()


def test_one_name_is_one_decision():
    width = [oneof([1, 2, 3], name="width") for _ in range(3)]
    found = programs({"a": width[0], "b": [width[1]], "c": N(depth=width[2])})
    assert [(v["a"], v["b"][0], v["c"].depth) for v in found] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_a_name_decided_outside_is_not_decided_again_inside():
    found = programs([oneof([N(depth=oneof([1, 2], name="d")), 0]), oneof([1, 2], name="d")])
    assert [repr(v) for v in found] == ["[Net(), 1]", "[Net(depth=2), 2]", "[0, 1]", "[0, 2]"]
    space = template([oneof([N(depth=oneof([1, 2], name="d")), 0]), oneof([1, 2], name="d")])
    for dna in space.spec.iter():
        assert space.encode(space.decode(dna)) == dna


def test_a_name_met_in_several_conditions_is_decided_once_before_them():
    depth = oneof([1, 2], name="d")
    space = template([oneof([0, N(depth=depth)]), oneof([0, N(depth=depth.clone())])])
    assert [point.name for point in space.spec.points] == ["d", None, None]
    values = {repr(space.decode(dna)) for dna in space.spec.iter()}
    assert "[Net(depth=2), Net(depth=2)]" in values and "[Net(), Net(depth=2)]" not in values
    assert len(values) == 7  # of 8 DNA: with neither net, its depth makes no difference
    repeated = template(manyof(2, [N(depth=depth.clone()), 0], distinct=False))
    assert [point.name for point in repeated.spec.points] == ["d", None]
    exclusive = template(oneof([N(depth=depth.clone()), [depth.clone()], 0]))
    assert exclusive.space_size == len(programs(exclusive.value)) == 5


@pytest.mark.parametrize(
    "value",
    [
        lambda: [oneof([1, 2], name="x"), oneof([1, 3], name="x")],
        lambda: [oneof([1, 2], name="x"), floatv(0, 1, name="x")],
        lambda: [oneof([oneof([1, 2], name="x"), 3]), [oneof([4, oneof([2, 1], name="x")])]],
        lambda: oneof([oneof([1, 2], name="x"), oneof([1, True], name="x")]),
    ],
)
def test_unequal_decisions_of_one_name_are_refused(value):
    with pytest.raises(SymbolicError, match="has the name of another decision"):
        template(value())


def test_a_name_that_lazy_candidates_decide_differently_is_refused():
    def lazy():
        return N(depth=oneof([1, 2], name="d"))

    space = template([oneof([lazy, 0]), oneof([lazy, 0])])
    assert space.decode(space.spec.from_numbers([0, 1, 0, 1])) == [N(depth=2), N(depth=2)]
    with pytest.raises(SymbolicError, match=r"\[1\].candidates\[0\].depth: .* made otherwise at \[0\]"):
        space.decode(space.spec.from_numbers([0, 1, 0, 0]))
    outside = template([oneof([1, 2], name="d"), oneof([lazy, 0]), oneof([lazy, 0])])
    assert {tuple(map(repr, outside.decode(dna))) for dna in outside.spec.iter()} >= {("2", "Net(depth=2)", "0")}
    assert outside.space_size == 8
    wrong = template(N(depth=oneof([1, lambda: "x"])))
    with pytest.raises(SymbolicError, match=r"depth.candidates\[1\]: expected int, got 'x'"):
        wrong.decode(wrong.spec.from_numbers([1]))


def test_equal_but_for_hints_is_the_same_decision():
    assert template([oneof([1, 2], name="x", hints="a"), oneof([1, 2], name="x")]).space_size == 2


def test_int_candidates_for_a_float_are_floats():
    found = programs(N(width=oneof([1, oneof([2, 3])]), parts=manyof(2, [1, 2, 3])))
    assert {type(v.width) for v in found} == {float} and {v.width for v in found} == {1.0, 2.0, 3.0}
    space = template(N(width=oneof([1, 2])))
    assert space.encode(N(width=2)) == DNA(None, [DNA(1)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oneof([]), "candidates: oneof expects a list with at least one"),
        (lambda: oneof("abc"), "oneof.candidates: expected list"),
        (lambda: oneof(3), "oneof.candidates"),
        (lambda: manyof(3, [1, 2]), "at most 2 distinct choices"),
        (lambda: manyof(0, [1, 2]), "choices >= 1, got 0"),
        (lambda: floatv(1, 1), "lo < hi"),
        (lambda: floatv(0, math.inf), "finite"),
        (lambda: floatv(math.nan, 1), "finite"),
        (lambda: floatv(0, 1, "log"), "above 0"),
        (lambda: floatv(1, 2, "cubic"), "'linear' or 'log'"),
        (lambda: intv(3, 2), "lo <= hi"),
        (lambda: intv(0.5, 2), "intv.lo: expected int"),
        (lambda: N(depth=oneof([1, "x"])), r"Net.depth.candidates\[1\]: expected int, got 'x'"),
        (lambda: N(depth=floatv(0, 1)), "Net.depth: expected int, got 0.0"),
        (lambda: N(depth=manyof(2, [1, 2])), "Net.depth: expected int"),
        (lambda: N(parts=manyof(2, [1, "x"])), r"Net.parts\[1\]: expected int"),
    ],
)
def test_hyper_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises(SymbolicError, match=message):
        make()


def test_undecided_values_do_not_build():
    with pytest.raises(SymbolicError, match=r"\[1\].depth: oneof.* is not decided"):
        build([1, N(depth=oneof([1, 2]))])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (N(width=3), "width: 3.0 is no candidate"),
        (N(depth=7), r"depth: expected an int in \[1, 5\], got 7"),
        (N(other=5), "other: expected None, got 5"),
        (J(), "the root: expected a Net"),
        (3, "the root: expected a Net, got 3"),
    ],
)
def test_programs_of_another_space_are_refused(value, message):
    space = template(N(width=oneof([1, 2]), depth=intv(1, 5)))
    with pytest.raises(SymbolicError, match=message):
        space.encode(value)


def test_where_splits_a_space_into_a_search_inside_a_search():
    value = N(width=oneof([1, 2], hints="outer"), depth=oneof([3, 4, 5], hints="inner"))
    outer = template(value, where=lambda hyper: hyper.hints == "outer")
    assert outer.space_size == 2
    found = []
    for dna in outer.spec.iter():
        inner = template(outer.decode(dna))
        assert inner.space_size == 3 and outer.encode(outer.decode(dna)) == dna
        found += [inner.decode(d) for d in inner.spec.iter()]
    assert {digest(v) for v in found} == {digest(v) for v in programs(value)}


def grow(value, rng):
    """One mutation: a part more."""
    return value.rebind(parts=[*value.parts, rng.randrange(10)])


def test_evolved_programs_are_decisions_too():
    space = template([evolve(N(parts=[]), grow), oneof([1, 2])])
    assert space.space_size == math.inf
    first = space.decode(space.spec.first())
    assert first[0] == N(parts=[])
    rng = random.Random(0)
    dna = space.spec.random(rng)
    assert len(space.decode(dna)[0].parts) == 1
    point = space.spec.points[0]
    further = dna.replace(0, point.mutate(dna.children[0], rng))
    assert len(space.decode(further)[0].parts) == 2
    assert space.encode(space.decode(further)) == further and DNA.from_json(further.to_json()) == further
    with pytest.raises(SymbolicError, match="custom decision"):
        space.decode(dna.replace(0, DNA(3)))
    with pytest.raises(SymbolicError, match="outside flambeau"):
        space.decode(dna.replace(0, DNA('{"flambeau": 1, "value": {"_ref": "os:system"}}')))


def test_inferred_values_follow_their_ancestor():
    root = N(width=2.5, other=J(N(width=inferred()), N(depth=1, other=[inferred("width")])))
    assert root.get("other.nets[0].width") == 2.5 and root["other"]["[1].other"][0] is not None
    root.rebind(width=7)
    nets, _, _ = root.build().other
    assert nets[0].width == 7.0 and nets[1].other == [1.0]  # the nearest ancestor with a width is the net itself
    alone = N(other=[N(depth=inferred("missing"))])
    with pytest.raises(SymbolicError, match=r"other\[0\].depth: no ancestor has a value for 'missing'"):
        alone.build()
    shared = N(other=J(N(other=inferred("core")), N(other=inferred("core")), core=N(depth=3)))
    (one, two), _, named = shared.build().other
    assert one.other is two.other is named["core"]


def test_decisions_reach_what_is_inferred_from_them():
    space = template(N(width=oneof([1, 2]), other=[N(width=inferred())]))
    assert [space.decode(dna).build().other[0].width for dna in space.spec.iter()] == [1.0, 2.0]


def test_permutations_and_nested_lists_encode():
    space = template([permutate([N(depth=oneof([1, 2])), "x"]), (manyof(1, [5, 6]),)])
    for dna in space.spec.iter():
        assert space.encode(space.decode(dna)) == dna
    assert space.space_size == 2 * 2 * 2 and isinstance(space.decode(space.spec.first())[1][0], list)

"""Against PyGlove itself: the order and number of DNA, and what rebinding does (development only)."""

import random
import typing

import pytest

from flambeau.symbolic import MISSING, Insert, build, floatv, manyof, oneof, permutate, symbolize, template

pg = pytest.importorskip("pyglove", reason="pyglove is not installed")


def paired(rng, depth):
    """The same random program for both."""
    kind = rng.randrange(5) if depth else 0
    if kind == 0:
        number = rng.randrange(100)
        return number, number
    if kind == 4:
        pairs = [paired(rng, depth - 1) for _ in range(rng.randint(1, 2))]
        keys = ["first", "second"]
        return dict(zip(keys, [a for a, _ in pairs])), pg.Dict(**dict(zip(keys, [b for _, b in pairs])))
    pairs = [paired(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    if kind == 1:
        return oneof(ours), pg.oneof(theirs)
    if kind == 2:
        distinct, ordered = rng.random() < 0.5, rng.random() < 0.5
        return (
            manyof(2, ours, distinct=distinct, sorted=ordered),
            pg.manyof(2, theirs, distinct=distinct, sorted=ordered),
        )
    return permutate(ours), pg.permutate(theirs)


def flat(dna):
    return dna.to_numbers()


@pytest.mark.parametrize("seed", range(30))
def test_enumeration_has_the_same_order_and_size(seed):
    rng = random.Random(seed)
    ours, theirs = paired(rng, 2)
    spec, reference = template({"x": ours, "y": oneof([1, 2])}).spec, pg.dna_spec(pg.Dict(x=theirs, y=pg.oneof([1, 2])))
    assert spec.size == reference.space_size
    count = 0
    for mine, other in zip(spec.iter(), reference.iter_dna()):
        assert flat(mine) == other.to_numbers()
        count += 1
        if count == 120:
            return
    assert count == spec.size


@pytest.mark.parametrize("seed", range(10))
def test_the_same_decisions_make_the_same_program(seed):
    ours, theirs = paired(random.Random(100 + seed), 2)
    mine, reference = template({"x": ours}), pg.template(pg.Dict(x=theirs))
    rng = random.Random(seed)
    for _ in range(8):
        dna = mine.spec.random(rng)
        same_decisions = pg.DNA.from_numbers(dna.to_numbers(), reference.dna_spec())
        assert build(mine.decode(dna)) == pg.to_json(reference.decode(same_decisions))


def test_a_float_makes_the_space_infinite_for_both():
    assert template(floatv(0, 1)).space_size == float("inf") and pg.dna_spec(pg.floatv(0.0, 1.0)).space_size == -1


class Holder:
    """What both symbolise."""

    def __init__(self, a=None, items=None):
        self.a, self.items = a, items


H = symbolize(Holder)
HEARD = []


class TheirHolder(pg.Object):
    a: typing.Any = None
    items: typing.Any = None

    def _on_change(self, field_updates):
        HEARD.append({str(path): update for path, update in field_updates.items()})
        super()._on_change(field_updates)


REBINDS = [
    {"a.a": 5},
    {"a.a": 5, "items[1]": 7},
    {"items[0]": "MISSING"},
    {"items[0]": "MISSING", "items[2]": 9},
    {"items[1]": "INSERT"},
    {"items[3]": 4},
    {"a.items[0].a": 1, "a.items[1]": "MISSING"},
    {"a": 3, "items": [1, 2]},
    {"a.a": 0},
]


@pytest.mark.parametrize("updates", REBINDS)
def test_rebinds_give_the_same_tree_and_the_same_events(updates):
    def plain(value):
        if isinstance(value, (Holder, TheirHolder)):
            items = value.items if isinstance(value, Holder) else value.sym_init_args["items"]
            return ("holder", plain(value.a), plain(items))
        return [plain(v) for v in value] if isinstance(value, list) else value

    ours = H(a=H(a=0, items=[H(a=8), 6]), items=[10, 11, 12])
    theirs = TheirHolder(a=TheirHolder(a=0, items=[TheirHolder(a=8), 6]), items=[10, 11, 12])
    heard = []
    for part in (ours, ours.a, ours.get("a.items[0]")):
        part.on_change(lambda changes: heard.append(set(changes)))
    HEARD.clear()
    special = {"MISSING": (MISSING, pg.MISSING_VALUE), "INSERT": (Insert(1), pg.Insertion(1))}
    mine = {path: special[v][0] if isinstance(v, str) else v for path, v in updates.items()}
    other = {path: special[v][1] if isinstance(v, str) else v for path, v in updates.items()}
    ours.rebind(mine)
    theirs.rebind(other, raise_on_no_change=False)
    assert plain(build(ours)) == plain(theirs)
    assert heard == [set(changes) for changes in HEARD]


def test_unknown_paths_are_refused_by_both():
    theirs = TheirHolder(a=1)
    with pytest.raises(KeyError):
        theirs.rebind({"b": 1})
    with pytest.raises(ValueError):
        H(a=1).rebind(b=1)


def test_rebind_by_function_agrees():
    ours = H(a=H(a=1, items=[1, 2]), items=[1])
    theirs = TheirHolder(a=TheirHolder(a=1, items=[1, 2]), items=[1])
    ours.rebind(lambda path, value, parent: value + 1 if isinstance(value, int) else value)
    theirs.rebind(lambda path, value, parent: value + 1 if isinstance(value, int) else value)
    inner, outer = theirs.a.sym_init_args["items"], theirs.sym_init_args["items"]
    assert [ours.a.a, ours.get("a.items"), ours.get("items")] == [theirs.a.a, inner, outer]


def test_positions_mean_the_list_before_as_in_a_rebind_of_a_pyglove_list():
    # PyGlove holds to this when the list itself is rebound; from further out it applies one path after the other.
    ours, theirs = H(items=[10, 11, 12]), pg.List([10, 11, 12])
    ours.rebind({"items[0]": Insert(1), "items[2]": MISSING})
    theirs.rebind({0: pg.Insertion(1), 2: pg.MISSING_VALUE})
    assert ours.get("items") == list(theirs) == [1, 10, 11]

"""Spaces and DNA: enumeration, sizes, validation, distributions, and that only the structure of a program matters."""

import math
import random
from itertools import combinations, combinations_with_replacement, permutations, product

import pytest

from flambeau.symbolic import (
    DNA,
    DesignPrior,
    SymbolicError,
    digest,
    evolve,
    floatv,
    intv,
    manyof,
    oneof,
    permutate,
    symbolize,
    template,
)


class Part:
    """Something with three arguments of any kind."""

    def __init__(self, a=None, b=None, c=None):
        self.a, self.b, self.c = a, b, c


P = symbolize(Part)


def random_program(rng, depth=3):
    """A random finite program with distinguishable candidates."""
    fresh = iter(range(10_000))

    def candidate(d):
        return value(d - 1) if d and rng.random() < 0.6 else next(fresh)

    def value(d):
        kind = rng.randrange(7)
        if kind == 0 or not d:
            return oneof([candidate(d) for _ in range(rng.randint(1, 3))])
        if kind == 1:
            n = rng.randint(2, 3)
            distinct, ordered = rng.random() < 0.5, rng.random() < 0.5
            return manyof(2, [candidate(d - 1) for _ in range(n)], distinct=distinct, sorted=ordered)
        if kind == 2:
            return permutate([candidate(0) for _ in range(rng.randint(1, 3))])
        if kind == 3:
            low = 10_000 + 10 * next(fresh)
            return intv(low, low + rng.randint(0, 2))
        if kind == 4:
            return [value(d - 1), next(fresh)]
        if kind == 5:
            return {"x": value(d - 1), "y": (next(fresh), candidate(d))}
        return P(a=candidate(d), b=value(d - 1))

    return P(a=value(depth), b=value(1))


def small_programs(count):
    seed = 0
    while count:
        program = template(random_program(random.Random(seed)))
        seed += 1
        if 2 < program.space_size <= 1500:
            count -= 1
            yield program


@pytest.mark.parametrize("number", range(20))
def test_enumeration_decodes_to_exactly_space_size_distinct_programs(number):
    program = list(small_programs(number + 1))[-1]
    seen = set()
    for dna in program.spec.iter():
        value = program.decode(dna)
        seen.add(digest(value))
        assert program.encode(value) == dna
        assert program.spec.validate(dna) == dna
        assert program.spec.from_numbers(dna.to_numbers()) == dna
        assert program.spec.from_dict(program.spec.to_dict(dna)) == dna
        assert DNA.from_json(dna.to_json()) == dna
    assert len(seen) == program.space_size


@pytest.mark.parametrize(
    ("distinct", "ordered", "expected"),
    [
        (True, False, permutations),
        (True, True, combinations),
        (False, False, lambda items, k: product(items, repeat=k)),
        (False, True, combinations_with_replacement),
    ],
)
def test_manyof_enumerates_like_itertools(distinct, ordered, expected):
    program = template(manyof(2, ["abc", "b", "c"], distinct=distinct, sorted=ordered))
    values = [tuple(program.decode(dna)) for dna in program.spec.iter()]
    assert values == list(expected(["abc", "b", "c"], 2))
    assert program.space_size == len(values)


def test_manyof_two_of_three_has_6_3_9_6():
    kinds = [(True, False), (True, True), (False, False), (False, True)]
    sizes = [template(manyof(2, [1, 2, 3], distinct=distinct, sorted=order)).space_size for distinct, order in kinds]
    assert sizes == [6, 3, 9, 6]


def test_permutate_gives_every_order():
    program = template(permutate([1, 2, 3, 4]))
    assert [tuple(program.decode(d)) for d in program.spec.iter()] == list(permutations([1, 2, 3, 4]))


def test_size_of_large_spaces_needs_no_enumeration():
    assert template([intv(0, 10**9 - 1), intv(0, 10**9 - 1)]).space_size == 10**18
    assert template(manyof(5, list(range(30)), sorted=True)).space_size == math.comb(30, 5)
    assert template(P(1)).space_size == 1
    assert template(P(floatv(0, 1))).space_size == math.inf


def test_equal_structure_gives_equal_specs_and_identical_proposals():
    one = template(P(oneof([1, oneof(["a", "b"])]), manyof(2, [1, 2, 3]), floatv(0.1, 1, "log")))
    nested = oneof([P(), P(oneof([P(), P(1)]))])
    other = template({"q": nested, "r": (manyof(2, ["x", 0, 1]), floatv(0.1, 1, "log"))})
    assert one.spec == other.spec and hash(one.spec) == hash(other.spec)
    assert one.spec.digest() == other.spec.digest()
    a, b = random.Random(7), random.Random(7)
    assert [one.spec.random(a) for _ in range(50)] == [other.spec.random(b) for _ in range(50)]


@pytest.mark.parametrize(
    "other",
    [
        oneof([1, 2, 3, 4]),
        oneof([1, 2, oneof([1, 2])]),
        oneof([1, 2, 3], name="x"),
        manyof(2, [1, 2, 3]),
        floatv(0, 1),
        [oneof([1, 2, 3]), oneof([1, 2, 3])],
    ],
)
def test_different_structure_gives_different_specs(other):
    spec = template(oneof([1, 2, 3])).spec
    assert spec != template(other).spec
    assert spec.digest() != template(other).spec.digest()


def test_sequential_decisions_make_the_same_dna_as_the_tree():
    spec = template(P(manyof(2, [1, 2, oneof(["ab", "c"])], sorted=True), oneof([floatv(0, 1), 0]))).spec
    rng = random.Random(1)
    for _ in range(200):
        numbers = []
        while (decision := spec.next_decision(numbers)) is not None:
            numbers.append(rng.random() if decision.options is None else rng.choice(list(decision.options)))
        dna = spec.from_numbers(numbers)
        assert spec.validate(dna).to_numbers() == numbers
        assert [d.id for d, _ in spec.decisions(dna)] and len(spec.decisions(dna)) == len(numbers)


def test_recursive_lazy_space_is_unbounded_but_usable():
    def tree():
        return oneof(["leaf", lambda: P(tree(), tree()), "bud"])

    program = template(tree())
    assert program.space_size == math.inf
    rng = random.Random(0)
    depths = set()
    for _ in range(50):
        dna = program.spec.random(rng)
        value = program.decode(dna)
        assert program.encode(value) == dna
        depths.add(len(dna.to_numbers()))
    assert len(depths) > 3
    assert template(tree()).spec == template(tree()).spec
    assert program.spec.next_decision([1, 0]).id.endswith("b")
    assert program.spec.next_decision([1, 0, 0]) is None


def test_lazy_candidates_are_not_called_before_they_are_chosen():
    calls = []

    def expensive():
        calls.append(1)
        return oneof([1, 2])

    program = template(P(oneof([0, expensive])))
    assert program.spec.next_decision([]).options == range(2)
    program.decode(program.spec.first())
    assert calls == []
    assert program.space_size == 3 and calls == [1]


BAD = [
    (oneof([1, 2]), DNA(None, [DNA(2)]), r"root.*\[0, 1\].*got 2"),
    (oneof([1, 2]), DNA(None, [DNA(True + 0.0)]), "index"),
    (oneof([1, 2]), DNA(None, []), "1 decisions, got 0"),
    (manyof(2, [1, 2, 3]), DNA(None, [DNA(None, [DNA(1), DNA(1)])]), r"root\[1\].*distinct"),
    (manyof(2, [1, 2, 3], sorted=True), DNA(None, [DNA(None, [DNA(1), DNA(0)])]), r"root\[1\].*sorted"),
    (manyof(2, [1, 2, 3], sorted=True), DNA(None, [DNA(None, [DNA(2), DNA(1)])]), r"leaves no 2 distinct sorted"),
    (manyof(2, [1, 2, 3]), DNA(None, [DNA(None, [DNA(1)])]), "2 choices"),
    (floatv(0, 1), DNA(None, [DNA(1.5)]), r"\[0.0, 1.0\], got 1.5"),
    (oneof([oneof([1, 2]), 3]), DNA(None, [DNA(0)]), "root=0.*1 decisions, got 0"),
    (oneof([oneof([1, 2]), 3]), DNA(None, [DNA(1, [DNA(0)])]), "root=1.*0 decisions, got 1"),
]


@pytest.mark.parametrize(("value", "dna", "message"), BAD)
def test_invalid_dna_is_refused_with_its_path(value, dna, message):
    program = template(P(a=[0, value]))
    with pytest.raises(SymbolicError, match=message.replace("root", r"a\[1\]")):
        program.decode(dna)


def test_numbers_and_dicts_that_do_not_fit_are_refused():
    spec = template(P(oneof([1, 2], name="width"), floatv(0, 1))).spec
    for numbers, message in [([0], "b: no decision"), ([0, 0.5, 1], "1 decisions too many"), ([5, 0.5], "a: .*got 5")]:
        with pytest.raises(SymbolicError, match=message):
            spec.from_numbers(numbers)
    with pytest.raises(SymbolicError, match="did you mean widht"):
        spec.from_dict({"widht": 0, "b": 0.5})
    with pytest.raises(SymbolicError, match="c: not a decision"):
        spec.from_dict({"width": 0, "b": 0.5, "c": 1})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"dna": 2, "value": [1]}',
        '{"dna": 1, "value": [null]}',
        '{"dna": 1, "value": [{"a": []}]}',
        '{"dna": 1, "value": [NaN]}',
        "[" * 100_000,
    ],
)
def test_text_that_is_no_dna_is_refused(text):
    with pytest.raises(SymbolicError):
        DNA.from_json(text)


def test_dna_is_immutable_and_compact():
    dna = DNA(None, [DNA(0, [DNA(None, [DNA(0), DNA(1)])]), DNA(0)])
    assert repr(dna) == "DNA([(0, [0, 1]), 0])"
    with pytest.raises(AttributeError):
        dna.value = 1
    assert dna.replace(1, DNA(1)) == DNA(None, [dna.children[0], DNA(1)]) != dna
    assert DNA(1) != DNA(1.0)


def test_features_hold_the_decisions_that_were_made_and_no_others():
    program = template(P(oneof([oneof(["a", "b"]), 0]), floatv(0, 1), manyof(2, [1, 2, 3])))
    taken = program.spec.from_numbers([0, 1, 0.25, 2, 0])
    assert taken.features() == {"0=0": 1, "0=0/0=1": 1, "1": 0.25, "2.0=2": 1, "2.1=0": 1}
    assert program.spec.features(taken) == {"a=0": 1, "a.candidates[0]=1": 1, "b": 0.25, "c[0]=2": 1, "c[1]=0": 1}
    untaken = program.spec.from_numbers([1, 0.25, 2, 0])
    assert untaken.features() == {"0=1": 1, "1": 0.25, "2.0=2": 1, "2.1=0": 1}
    assert taken.features(n=1) == {"0=0": 1, "0=1": 1, "1": 0.25, "2.0=2": 1, "2.1=0": 1}


@pytest.mark.parametrize(("distinct", "ordered"), product([True, False], repeat=2))
def test_log_prob_sums_to_one_and_agrees_with_sampling(distinct, ordered):
    program = template(P(manyof(2, ["x", oneof([1, 2]), "z"], distinct=distinct, sorted=ordered)))
    prior = DesignPrior({"a": [0.5, 0.2, 0.3], "a[0].candidates[1]": [0.9, 0.1]})
    for belief in (None, prior):
        probabilities = {dna: math.exp(program.spec.log_prob(dna, belief)) for dna in program.spec.iter()}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
        rng = random.Random(3)
        draws = [program.spec.random(rng, belief) for _ in range(1500)]
        for dna, probability in probabilities.items():
            assert draws.count(dna) / 1500 == pytest.approx(probability, abs=0.05)


def test_prior_over_a_float_is_a_histogram_on_its_scale():
    program = template(P(floatv(1e-4, 1, "log", name="lr")))
    prior = DesignPrior({"lr": [0, 0, 3, 1]})
    rng = random.Random(0)
    values = [program.decode(program.spec.random(rng, prior)).a for _ in range(2000)]
    assert min(values) >= 1e-2 and 0.7 < sum(v < 0.1 for v in values) / 2000 < 0.8
    # the density integrates to 1: substitute x = 10**u
    steps = [10 ** (-4 + 4 * (i + 0.5) / 4000) for i in range(4000)]
    densities = [math.exp(program.spec.log_prob(DNA(None, [DNA(x)]), prior)) for x in steps]
    total = sum(density * x for density, x in zip(densities, steps)) * math.log(10) * 4 / 4000
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]])
def test_prior_refuses_weights_that_are_none(weights):
    with pytest.raises(SymbolicError, match="width: "):
        DesignPrior({"width": weights})


def test_prior_with_the_wrong_number_of_weights_is_refused():
    with pytest.raises(SymbolicError, match="a: the prior has 3 weights for 2"):
        template(P(oneof([1, 2]))).spec.random(random.Random(0), DesignPrior({"a": [1, 1, 1]}))


def test_floats_and_custom_decisions_cannot_be_enumerated():
    with pytest.raises(SymbolicError, match="a: "):
        list(template(P(floatv(0, 1))).spec.iter())
    with pytest.raises(SymbolicError, match="a: "):
        list(template(P(evolve(P(), lambda v, rng: v))).spec.iter())

"""Evolution and its operations, against references written out and against PyGlove."""

import random
from collections import Counter

import numpy as np
import pytest

from flambeau.search.algorithms import (
    NSGA2,
    Choice,
    Context,
    Evolution,
    First,
    Identity,
    Individual,
    Last,
    NondominatedSort,
    RegularizedEvolution,
    Sample,
    Top,
    Uniform,
    crowding,
    fronts,
)
from flambeau.search.algorithms.mutators import all_sites
from flambeau.symbolic import DNA, evolve, floatv, manyof, oneof, template


def flat_space(decisions=8, candidates=4):
    return template([oneof(list(range(candidates))) for _ in range(decisions)]).spec


def test_regularized_evolution_equals_a_reference_for_500_trials():
    spec, seed, size, tournament = flat_space(), 7, 20, 5

    def score(genes):
        return -sum((gene - i % 4) ** 2 for i, gene in enumerate(genes)) + 0.01 * genes[0] * genes[3]

    def reference(trials):  # Real et al. 2019, algorithm 1, on plain lists
        population, proposed = [], []
        for trial in range(trials):
            rng = random.Random(f"{seed}/propose/{trial}")
            if trial < size:
                genes = [rng.randrange(4) for _ in range(8)]
            else:
                drawn = sorted(rng.sample(range(len(population)), tournament))
                parent = max((population[i] for i in drawn), key=lambda pair: pair[1])[0]
                genes = list(parent)
                at = rng.randrange(8)
                genes[at] = rng.randrange(4)
            proposed.append(genes)
            population.append((genes, score(genes)))
            if len(population) > size:
                population.pop(0)
        return proposed

    algorithm, ours = RegularizedEvolution(size, tournament), []
    algorithm.setup(spec, seed)
    for _ in range(500):
        dna = algorithm.propose()
        ours.append(dna.to_numbers())
        algorithm.feedback(dna, score(ours[-1]))
    assert ours == reference(500)


def individuals(*rewards):
    return [Individual(DNA(None, [DNA(i)]), reward) for i, reward in enumerate(rewards)]


def context(seed=0):
    return Context(flat_space(1, 10), random.Random(seed))


def test_selectors():
    some = individuals(3.0, 5.0, 1.0, 5.0)
    assert Top(2)(some, context()) == [some[1], some[3]]
    assert First(1)(some, context()) == some[:1] and Last(3)(some, context()) == some[1:]
    assert Sample(9)(some, context()) == some
    counts = Counter(individual.dna for seed in range(400) for individual in Sample(2)(some, context(seed)))
    assert all(150 < count < 250 for count in counts.values())


def test_composition():
    some = individuals(3.0, 5.0, 1.0)
    assert (First(2) >> Top(1))(some, context()) == [some[1]]
    assert (First(1) + Last(1))(some, context()) == [some[0], some[2]]
    assert (First(1) * 3)(some, context()) == [some[0]] * 3
    assert First(1).when(lambda xs: len(xs) > 2)(some, context()) == [some[0]]
    assert First(1).when(lambda xs: len(xs) > 3)(some, context()) == some
    assert First(1).when(lambda xs: False, Last(1))(some, context()) == [some[2]]
    best = Sample(1).until(lambda xs: xs[0].reward == 5.0)
    assert all(best(some, context(seed)) == [some[1]] for seed in range(20))
    changed = Uniform().until_changed()
    assert all(changed(some[:1], context(seed))[0].dna != some[0].dna for seed in range(50))
    with pytest.raises(ValueError, match="times"):
        First(1) * 0


def test_weighted_choice():
    either = Choice([(First(1), 3.0), (Last(1), 1.0)])
    some = individuals(1.0, 2.0)
    counts = Counter(either(some, context(seed))[0].reward for seed in range(2000))
    assert 1400 < counts[1.0] < 1600
    with pytest.raises(ValueError, match="weights"):
        Choice([(Identity(), 0.0)])


def test_evolution_proposes_all_children_of_a_reproduction():
    algorithm = Evolution(Top(1) >> Uniform() * 4, population_init=2, population_update=Top(1))
    algorithm.setup(flat_space(), 0)
    for _ in range(2):
        dna = algorithm.propose()
        algorithm.feedback(dna, 0.0)
    best = algorithm.population[0].dna
    children = [algorithm.propose() for _ in range(4)]
    for child in children:
        assert sum(a != b for a, b in zip(child.to_numbers(), best.to_numbers())) <= 1


# -- NSGA-II ---------------------------------------------------------------------------------------------------------


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


def brute_ranks(points):
    """Rank 0 is dominated by nothing; rank r by something of rank r - 1 at most."""
    ranks, left = {}, set(range(len(points)))
    for rank in range(len(points)):
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        ranks |= dict.fromkeys(front, rank)
        left -= front
    return [ranks[i] for i in range(len(points))]


def brute_crowding(points):
    total = [0.0] * len(points)
    for axis in range(len(points[0])):
        values = sorted(point[axis] for point in points)
        for i, point in enumerate(points):
            if point[axis] in (values[0], values[-1]):
                total[i] = float("inf")
            else:
                at = values.index(point[axis])
                total[i] += (values[at + 1] - values[at - 1]) / (values[-1] - values[0])
    return total


@pytest.mark.parametrize("seed", range(20))
def test_fronts_and_crowding_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    objectives = int(rng.integers(2, 4))
    points = rng.integers(0, 6, (40, objectives)).astype(float)  # with ties
    ranks = np.empty(40, int)
    for rank, front in enumerate(fronts(points)):
        ranks[front] = rank
    assert ranks.tolist() == brute_ranks(points.tolist())
    distinct = rng.permuted(np.tile(np.arange(12.0), (objectives, 1)), axis=1).T
    np.testing.assert_allclose(crowding(distinct), brute_crowding(distinct.tolist()))


def test_sort_order_is_rank_then_crowding():
    rng = np.random.default_rng(3)
    some = individuals(*map(tuple, rng.random((30, 2))))
    ordered = NondominatedSort()(some, context())
    points = [individual.reward for individual in ordered]
    ranks = brute_ranks(points)
    assert ranks == sorted(ranks)
    for rank in set(ranks):
        lonely = brute_crowding([p for p, r in zip(points, ranks) if r == rank])
        assert lonely == sorted(lonely, reverse=True)


def test_nsga2_finds_the_front_of_two_opposed_objectives():
    spec = flat_space(10, 2)  # (ones in the first half or zeros in the second, zeros first or ones second)

    def rewards(dna):
        genes = dna.to_numbers()
        return float(sum(genes)), float(10 - sum(genes) - 5 * (genes[0] != genes[9]))

    algorithm = NSGA2(16)
    algorithm.setup(spec, 0)
    for _ in range(600):
        dna = algorithm.propose()
        algorithm.feedback(dna, rewards(dna))
    found = {individual.reward for individual in algorithm.population[:16]}
    assert len({reward for reward in found if sum(reward) == 10.0}) >= 8


# -- the uniform mutator ---------------------------------------------------------------------------------------------


def test_sites_are_the_nodes_of_decisions():
    spec = template([oneof([0, oneof([1, 2])]), manyof(2, [1, 2, 3]), floatv(0, 1)]).spec
    dna = spec.from_numbers([1, 0, 2, 0, 0.5])
    assert [(site.path, site.position) for site in all_sites(spec, dna)] == [
        ((0,), None),
        ((0, 0), None),
        ((1,), None),
        ((1, 0), 0),
        ((1, 1), 1),
        ((2,), None),
    ]


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_mutations_stay_in_the_space_and_reach_all_of_it(distinct, ordered):
    spec = template([manyof(2, [oneof([0, 1]), 2, 3], distinct=distinct, sorted=ordered), oneof([0, 1])]).spec
    rng, dna, seen = random.Random(0), spec.first(), set()
    for _ in range(3000):
        dna = spec.validate(Uniform().mutate(dna, spec, rng))
        seen.add(dna)
    assert len(seen) == spec.size


def test_where_and_prior_of_a_mutation():
    spec = template({"a": oneof([0, 1, 2], name="a"), "b": oneof([0, 1, 2], name="b")}).spec
    only = Uniform(where=lambda point: point.name == "b")
    rng = random.Random(0)
    assert {only.mutate(spec.first(), spec, rng).to_numbers()[0] for _ in range(50)} == {0}
    with pytest.raises(ValueError, match="no decision"):
        Uniform(where=lambda point: False).mutate(spec.first(), spec, rng)


def test_custom_decisions_change_by_their_own_mutation():
    spec = template(evolve(1, lambda value, rng: value + 1)).spec
    dna = spec.first()
    for expected in (2, 3, 4):
        dna = Uniform().mutate(dna, spec, random.Random(0))
        assert template(evolve(1, lambda value, rng: value + 1)).decode(dna) == expected


SPACES = {
    "flat": lambda s: [s.oneof([0, 1, 2]), s.oneof([0, 1])],
    "conditional": lambda s: [s.oneof([s.oneof([0, 1, 2]), 5]), s.oneof([0, 1])],
    "distinct": lambda s: [s.manyof(2, [0, 1, 2, 3]), s.oneof([0, 1])],
    "sorted": lambda s: [s.manyof(2, [0, 1, 2, 3], sorted=True), s.oneof([0, 1])],
    "free": lambda s: [s.manyof(2, [0, 1, 2], distinct=False), s.oneof([0, 1])],
}


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_mutation_has_pyglove_s_distribution(make):
    """From every point of the space, the frequencies of what comes out agree (chi-square on 3000 draws each)."""
    pg = pytest.importorskip("pyglove", reason="pyglove is not installed")
    from scipy.stats import chi2_contingency

    import flambeau.symbolic as ours

    spec, theirs = template(make(ours)).spec, pg.dna_spec(make(pg))
    start = spec.random(random.Random(5))
    parent = theirs and pg.DNA.from_numbers(start.to_numbers(), theirs)
    assert spec.size == theirs.space_size
    rng, mutator, oracle = random.Random(1), Uniform(), pg.evolution.mutators.Uniform(seed=2)
    a = Counter(tuple(mutator.mutate(start, spec, rng).to_numbers()) for _ in range(3000))
    b = Counter(tuple(oracle.mutate(parent).to_numbers()) for _ in range(3000))
    assert set(a) == set(b)
    p = chi2_contingency([[a[key] for key in sorted(a)], [b[key] for key in sorted(a)]]).pvalue
    assert p > 1e-4

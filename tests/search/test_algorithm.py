import random

import pytest

from flambeau.search.algorithm import Algorithm, Dedup, Feasible, Random, Sweep
from flambeau.symbolic import manyof, oneof, template

SPEC = template([oneof([1, 2, 3]), oneof([oneof([4, 5]), 6]), manyof(2, ["a", "b", "c"])]).spec
OTHER = template({"x": oneof(["p", "q", "r"]), "y": oneof([oneof([0, 1]), None]), "z": manyof(2, [7, 8, 9])}).spec


def proposals(algorithm, count, spec=SPEC, seed=0):
    algorithm.setup(spec, seed)
    return [algorithm.propose() for _ in range(count)]


@pytest.mark.parametrize("make", [Random, Sweep, lambda: Dedup(Random())])
def test_state_continues_exactly(make):
    whole = proposals(make(), 20)
    first, second = make(), make()
    assert proposals(first, 8) == whole[:8]
    second.setup(SPEC, 0)
    second.load_state_dict(first.state_dict())
    assert [second.propose() for _ in range(12)] == whole[8:]


@pytest.mark.parametrize("make", [Random, Sweep, lambda: Dedup(Random())])
def test_recover_replays_the_history(make):
    whole = proposals(make(), 20)
    algorithm = make()
    algorithm.setup(SPEC, 0)
    algorithm.recover([(dna, None if i % 3 == 0 else 1.0) for i, dna in enumerate(whole[:8])])
    assert [algorithm.propose() for _ in range(12)] == whole[8:]


def test_programs_of_equal_spaces_get_equal_proposals():
    assert SPEC == OTHER
    assert proposals(Random(), 30) == proposals(Random(), 30, OTHER)
    assert proposals(Random(), 30) != proposals(Random(), 30, seed=1)


def test_sweep_visits_every_point_once():
    algorithm = Sweep()
    seen = set(proposals(algorithm, SPEC.size))
    assert len(seen) == SPEC.size == 54
    with pytest.raises(StopIteration):
        algorithm.propose()


def test_dedup_never_repeats_and_ends():
    algorithm = Dedup(Random(), attempts=500)
    algorithm.setup(SPEC, 0)
    known = SPEC.random(random.Random(5))
    algorithm.feedback(known, 1.0)  # from elsewhere: counts as seen
    seen = [algorithm.propose() for _ in range(SPEC.size - 1)]
    assert len({*seen, known}) == SPEC.size
    with pytest.raises(StopIteration):
        algorithm.propose()
    with pytest.raises(ValueError, match="attempts"):
        Dedup(Random(), attempts=0)


def test_an_algorithm_need_not_inherit():
    class Fixed:
        multi_objective, needs_feedback = False, False

        def setup(self, spec, seed): ...
        def propose(self): ...
        def feedback(self, dna, reward): ...
        def recover(self, history): ...
        def state_dict(self): ...
        def load_state_dict(self, state): ...

    assert isinstance(Fixed(), Algorithm) and isinstance(Random(), Algorithm)


def test_feasible_asks_again_and_keeps_the_state_of_what_it_wraps():
    spec, even = template([oneof(list(range(10)))]).spec, lambda dna: dna.to_numbers()[0] % 2 == 0
    algorithm, plain = Feasible(Random(), even), Random()
    algorithm.setup(spec, 3), plain.setup(spec, 3)
    proposed = [algorithm.propose() for _ in range(20)]
    assert proposed == [dna for dna in (plain.propose() for _ in range(200)) if even(dna)][:20]
    other = Feasible(Random(), even)
    other.setup(spec, 3)
    other.load_state_dict(algorithm.state_dict())
    assert other.propose() == algorithm.propose()
    never = Feasible(Random(), lambda dna: False, attempts=5)
    never.setup(spec, 0)
    with pytest.raises(StopIteration, match="5 proposals in a row were refused"):
        never.propose()
    with pytest.raises(ValueError, match="attempts: expected at least 1"):
        Feasible(Random(), even, attempts=0)

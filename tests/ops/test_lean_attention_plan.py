import random

import pytest

from flambeau.ops.lean_attention import LeanPlan
from flambeau.ops.lean_attention.plan import choose_schedule, default_workers


def random_plans(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        tile = rng.choice([1, 16, 64, 256])
        lengths = [rng.choice([0, 1, tile - 1, tile, tile + 1, rng.randrange(5000)]) for _ in range(rng.randint(1, 9))]
        schedule = rng.choice(["lean", "lean", "per_head", "split(3)"])
        yield LeanPlan(lengths, rng.randint(1, 4), tile, rng.randint(1, 40), schedule)


def test_every_tile_and_key_is_computed_once():
    for plan in random_plans(300):
        tiles = sorted((s.output, j) for s in plan.segments for j in range(s.first, s.last))
        assert tiles == [(t, j) for t, count in enumerate(plan.tiles) for j in range(count)]
        keys = sorted((s.output, key) for s in plan.segments for key in plan.keys(s))
        lengths = [length for length in plan.lengths for _ in range(plan.kv_heads)]
        assert keys == [(t, key) for t, length in enumerate(lengths) for key in range(length)]


def test_lean_shares_differ_by_at_most_one_tile_and_two_partials_a_unit():
    for plan in random_plans(300, 1):
        if plan.schedule != "lean" or not plan.ranges:
            continue
        shares = [high - low for low, high in plan.ranges]
        assert max(shares) - min(shares) <= 1
        assert len(plan.ranges) == min(plan.workers, sum(plan.tiles))
        assert plan.partials <= 2 * len(plan.ranges)


def test_counters_and_slots():
    for plan in random_plans(300, 2):
        for output, arrivals in enumerate(plan.arrivals):
            segments = [s for s in plan.segments if s.output == output]
            assert arrivals == len(segments)
            assert all(s.partial == (arrivals > 1) for s in segments)
            units = [s.unit for s in segments]
            assert units == list(range(units[0], units[0] + arrivals)) if units else plan.tiles[output] == 0
        slots = [s.slot for s in plan.segments if s.partial]
        assert len(set(slots)) == len(slots)


def test_special_cases_are_the_known_schedules():
    assert LeanPlan([1024, 256], 2, 256, 3, "per_head").ranges == ((0, 4), (4, 8), (8, 9), (9, 10))
    split = LeanPlan([1024, 256], 1, 256, 1, "split(2)")
    assert split.ranges == ((0, 2), (2, 4), (4, 5), (4, 4))
    assert split.arrivals == (2, 1) and split.partials == 2
    assert LeanPlan([1000], 1, 100, 4).ranges == ((0, 2), (2, 5), (5, 7), (7, 10))
    assert LeanPlan([0, 0]).ranges == ()


def test_choice_of_schedule_and_workers():
    assert choose_schedule([8192] * 4, 2, 2) == "per_head"
    assert choose_schedule([8192, 100, 100, 100], 2, 2) == "lean"  # ragged
    assert choose_schedule([8192], 3, 2) == "lean"  # too few
    assert choose_schedule([8192] * 9, 1, 2) == "lean"  # a half-empty last round
    assert choose_schedule([], 1, 2) == "lean"
    assert (default_workers(1, 8), default_workers(5, 8), default_workers(100, 8)) == (1, 2, 8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([-1],), "lengths"),
        (([1], 0), "kv_heads"),
        (([1], 1, 0), "tile"),
        (([1], 1, 1, 0), "workers"),
        (([1], 1, 1, 1, "split(0)"), "split"),
        (([1], 1, 1, 1, "fastest"), "fastest"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        LeanPlan(*arguments)

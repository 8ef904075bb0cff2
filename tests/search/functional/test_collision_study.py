import pytest

from flambeau.search.functional.collision_study import collision_study, collisions


def test_rates():
    found = collisions([1, 1, 2, 3, 4], ["a", "b", "c", "c", "d"])
    assert found == (4, 4, 0.5, 0.25)
    assert collisions([5, 5, 6], ["a", "a", "b"]) == (2, 2, 0.0, 0.0)
    with pytest.raises(ValueError, match="truth: expected one for each of the 2 keys"):
        collisions([1, 2], ["a"])


def test_study_over_bits_and_budgets():
    numbers = {1: [[1.0], [1.01], [2.0]], 2: [[1.0, 0.5], [1.0 + 1e-15, 0.7], [2.0, 0.5]]}
    rows = collision_study(numbers, ["a", "b", "c"], (1, 24))
    assert [(row["budget"], row["bits"], row["keys"]) for row in rows] == [(1, 1, 2), (1, 24, 3), (2, 1, 3), (2, 24, 3)]
    assert [row["split"] for row in rows] == [0] * 4 and rows[0]["merged"] == pytest.approx(2 / 3)

import pytest
import torch

from flambeau.data.subsets import check_disjoint_groups, nested_fractions, per_class

LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 5)[torch.randperm(65, generator=torch.Generator().manual_seed(1))]


def counts(rows):
    return LABELS[rows].bincount(minlength=3).tolist()


def test_every_class_gives_as_many_and_more_contain_fewer():
    few, more = per_class(LABELS, 2, seed=4), per_class(LABELS, 5, seed=4)
    assert counts(few) == [2, 2, 2] and counts(more) == [5, 5, 5]
    assert set(few.tolist()) < set(more.tolist())
    assert torch.equal(few, per_class(LABELS, 2, seed=4)) and not torch.equal(few, per_class(LABELS, 2, seed=5))


def test_fractions_are_stratified_and_nested():
    parts = nested_fractions(LABELS, (0.1, 0.25, 0.5, 1.0), seed=0)
    assert [counts(part) for part in parts] == [[4, 2, 1], [10, 5, 1], [20, 10, 2], [40, 20, 5]]
    for small, large in zip(parts, parts[1:]):
        assert set(small.tolist()) <= set(large.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_parts_nested(seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 18, (65,), generator=generator)
    parts = nested_fractions(LABELS, (0.1, 0.3, 0.6), seed=seed, groups=groups)
    for part, fraction in zip(parts, (0.1, 0.3, 0.6)):
        inside = set(groups[part].tolist())
        assert set(part.tolist()) == {i for i in range(65) if groups[i].item() in inside}
        assert all(have >= max(1, round(fraction * n)) for have, n in zip(counts(part), (40, 20, 5)))
    for small, large in zip(parts, parts[1:]):
        assert set(small.tolist()) <= set(large.tolist())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="class 2 has 5 cases, 6 are wanted"):
        per_class(LABELS, 6)
    with pytest.raises(ValueError, match="count"):
        per_class(LABELS, 0)
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\], got 1.5"):
        nested_fractions(LABELS, (1.5,))
    with pytest.raises(ValueError, match="groups must have shape"):
        nested_fractions(LABELS, (0.5,), groups=torch.zeros(3, dtype=torch.long))
    check_disjoint_groups(train=torch.tensor([1, 2]), test=torch.tensor([3]))
    with pytest.raises(ValueError, match=r"train and test share 1 groups, for example \[2\]"):
        check_disjoint_groups(train=torch.tensor([1, 2]), test=torch.tensor([2, 3]))

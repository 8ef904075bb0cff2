import pytest
import torch

from flambeau.nn.distances import nearest
from flambeau.nn.kmeans import kmeans, kmeans_plus_plus


def clusters(k=8, each=30):
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(k, 4, generator=generator)
    return (centres.repeat_interleave(each, 0) + 0.1 * torch.randn(k * each, 4, generator=generator)), centres


def test_seeds_are_points_of_every_separated_cluster():
    points, centres = clusters()
    seeds = kmeans_plus_plus(points, 8, generator=torch.Generator().manual_seed(1))
    assert (nearest(seeds, points)[0] == 0).all()
    assert len(set(nearest(seeds, centres)[1][:, 0].tolist())) == 8


def test_lloyd_ends_at_the_cluster_means():
    points, _ = clusters()
    found = kmeans(points, 8, generator=torch.Generator().manual_seed(1))
    means = points.view(8, 30, 4).mean(1)
    assert nearest(means, found)[0].max() < 1e-8


def test_same_seed_same_seeds_and_duplicates_do_not_fail():
    points, _ = clusters()
    first, second = (kmeans_plus_plus(points, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert kmeans(torch.ones(6, 2), 4).shape == (4, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="k: got 9"):
        kmeans_plus_plus(torch.zeros(4, 2), 9)
    with pytest.raises(ValueError, match="NaN"):
        kmeans(torch.full((4, 2), float("nan")), 2)
    with pytest.raises(ValueError, match="points"):
        kmeans(torch.zeros(4, 2, dtype=torch.int64), 2)

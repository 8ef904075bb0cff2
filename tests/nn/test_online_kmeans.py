"""Centroids find clusters, follow exactly by their averages, agree over processes, and keep still when they must."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.checkpoint import checkpoint

from flambeau.nn import OnlineKMeans


def blobs(count=400, clusters=4, dim=6, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(heads, clusters, dim, generator=generator)
    owner = torch.randint(clusters, (1, heads, count), generator=generator)
    points = centres[torch.arange(heads)[:, None], owner[0]] + 0.1 * torch.randn(heads, count, dim, generator=generator)
    return centres, points[None], owner


@pytest.mark.parametrize("init", ["kmeans", "sample", "normal"])
def test_recovers_the_centres_of_blobs(init):
    torch.manual_seed(0)
    centres, points, _ = blobs()
    module = OnlineKMeans(2, 4, 6, decay=0.8, init=init, metric="euclidean", revive_below=0.05)
    for _ in range(80):
        module(points)
    distance = torch.cdist(centres, module.centroids).amin(2)
    assert distance.max() < 0.1
    assert module.perplexity.min() > 3.5 and torch.allclose(module.usage.sum(-1), torch.ones(2))


def test_averages_settle_on_the_means_and_counts_of_a_repeated_batch():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 50, 8)
    module = OnlineKMeans(2, 4, 8, decay=0.9, metric="euclidean")
    for _ in range(300):
        index = module(x).index
    points = x.transpose(0, 1).flatten(1, 2)
    for head in range(2):
        for cluster in range(4):
            members = points[head][index[:, head].flatten() == cluster]
            assert len(members) and torch.allclose(module.centroids[head, cluster], members.mean(0), atol=1e-3)
    assert torch.allclose(module.counts.sum(-1), torch.full((2,), 150.0), atol=1e-2)


def test_padding_neither_counts_nor_moves():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 1, 20, 4), torch.rand(2, 20) > 0.4
    plain, padded = OnlineKMeans(1, 3, 4, decay=0.5), OnlineKMeans(1, 3, 4, decay=0.5)
    padded.load_state_dict(plain.state_dict())
    kept = x.transpose(1, 2)[mask][None, None, :, 0]
    expected = plain(kept)
    filled = torch.where(mask[:, None, :, None], x, 100.0)
    got = padded(filled, mask)
    assert torch.allclose(plain.centroids, padded.centroids, atol=1e-6)
    assert torch.allclose(expected.loss, got.loss, atol=1e-6)
    before = padded.centroids.clone()
    padded(filled, torch.zeros_like(mask))
    assert torch.allclose(padded.centroids, before, atol=1e-5) and torch.isfinite(padded(filled, mask).loss)


def test_evaluation_changes_nothing():
    module = OnlineKMeans(2, 4, 8).eval()
    before = copy.deepcopy(module.state_dict())
    module(torch.randn(2, 2, 30, 8))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_updates_once_and_sees_the_same_centroids(reentrant):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 30, 8, requires_grad=True)
    plain = OnlineKMeans(2, 4, 8, decay=0.1)  # moves far, so that a second update would show
    again = copy.deepcopy(plain)
    plain(x).loss.backward()
    expected, x.grad = x.grad, None
    checkpoint(lambda points: again(points).loss, x, use_reentrant=reentrant).backward()
    assert torch.equal(plain.centroids, again.centroids) and torch.equal(plain.counts, again.counts)
    assert torch.allclose(x.grad, expected)


def test_stays_float32_and_is_saved():
    module = OnlineKMeans(2, 4, 8, decay=0.999)
    before = module.centroids.clone()
    module.to(torch.bfloat16)
    assert module.centroids.dtype == module.counts.dtype == torch.float32 and torch.equal(module.centroids, before)
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            result = module(torch.ones(1, 2, 10, 8, dtype=torch.bfloat16))
    assert not torch.equal(module.centroids, before) and result.scores.dtype == torch.float32
    other = OnlineKMeans(2, 4, 8)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.centroids, module.centroids) and torch.equal(other.sums, module.sums)


def test_a_dead_centroid_is_revived_on_a_point():
    torch.manual_seed(0)
    _, points, _ = blobs(heads=1)
    module = OnlineKMeans(1, 4, 6, decay=0.5, metric="euclidean", revive_below=0.05)
    with torch.no_grad():
        module.centroids[0, 3] = 1e4
        module.sums.copy_(module.centroids)
    for _ in range(20):
        module(points)
    assert module.centroids.abs().max() < 100 and (module.usage > 0.01).all()


def test_without_averages_the_centroids_learn_by_gradient():
    torch.manual_seed(0)
    centres, points, _ = blobs(heads=1)
    module = OnlineKMeans(1, 4, 6, decay=None, init="kmeans", metric="euclidean")
    module(points)
    with torch.no_grad():
        module.centroids += 0.3
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    first = module(points).loss.item()
    for _ in range(100):
        optimizer.zero_grad()
        module(points).loss.backward()
        optimizer.step()
    assert module(points).loss.item() < 0.3 * first


def test_normalized_centroids_stay_on_the_sphere():
    torch.manual_seed(0)
    module = OnlineKMeans(2, 4, 8, decay=0.5, normalize=True)
    for _ in range(5):
        module(torch.nn.functional.layer_norm(torch.randn(2, 2, 30, 8), (8,)))
    assert torch.allclose(module.centroids.norm(dim=-1), torch.full((2, 4), 8**0.5), atol=1e-2)


def test_data_dependent_start_in_evaluation_warns_once_and_holds():
    torch.manual_seed(0)
    module = OnlineKMeans(1, 4, 6, init="kmeans").eval()
    points = torch.randn(1, 1, 40, 6)
    with pytest.warns(UserWarning, match="before it has seen a training batch"):
        first = module(points).index
    assert torch.equal(first, module(points).index) and first.unique().numel() == 4
    few = OnlineKMeans(1, 4, 6, init="kmeans").train()
    assert torch.isfinite(few(torch.randn(1, 1, 2, 6)).loss)  # fewer points than centroids


def _half(rank, file, x, state, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = OnlineKMeans(2, 4, 8, decay=0.9)
    module.load_state_dict(state)
    for batch in x:
        module(batch[rank * 2 : rank * 2 + 2])
    if rank == 0:
        torch.save(dict(module.state_dict()), results)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_with_half_batches_have_the_centroids_of_one(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(5, 4, 2, 30, 8)
    whole = OnlineKMeans(2, 4, 8, decay=0.9)
    state = copy.deepcopy(whole.state_dict())
    for batch in x:
        whole(batch)
    mp.spawn(_half, (str(tmp_path / "rendezvous"), x, state, str(tmp_path / "half.pt")), nprocs=2)
    half = torch.load(tmp_path / "half.pt", weights_only=True)
    for name in ("centroids", "counts", "sums"):
        assert torch.allclose(half[name], whole.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(heads=0), "heads must be at least 1"),
        (dict(decay=1.0), "decay must lie"),
        (dict(init="zeros"), "init must be"),
        (dict(metric="cosine"), "metric must be"),
        (dict(revive_below=2.0), "revive_below must lie"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineKMeans(**{"heads": 2, "clusters": 4, "dim": 8, **arguments})


def test_bad_inputs():
    module = OnlineKMeans(2, 4, 8)
    with pytest.raises(ValueError, match=r"x must be \[batch, 2, points, 8\], got \[1, 3, 5, 8\]"):
        module(torch.randn(1, 3, 5, 8))
    with pytest.raises(ValueError, match=r"mask must be \[1, 5\]"):
        module(torch.randn(1, 2, 5, 8), torch.ones(1, 6, dtype=torch.bool))

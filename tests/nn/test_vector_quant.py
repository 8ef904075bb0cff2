"""Codes start on clusters, follow their inputs, and come back when dead."""

import pytest
import torch

from flambeau.nn.vector_quant import VectorQuant


def clusters(generator, count=300):
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    owners = torch.arange(count) % 4
    return centres, centres[owners] + 0.1 * torch.randn(count, 2, generator=generator)


def test_start_finds_clusters_and_quantises_to_the_nearest():
    generator = torch.Generator().manual_seed(0)
    centres, points = clusters(generator)
    quant = VectorQuant(4, 2).eval()
    quant.start(points, generator)
    assert torch.cdist(centres, quant.codebook).amin(1).max() < 0.1
    out = quant(points.view(30, 10, 2))
    brute = torch.cdist(points, quant.codebook).argmin(1)
    assert torch.equal(out.indices.flatten(), brute)
    assert torch.allclose(out.vectors.flatten(0, 1), quant.embed(brute))
    assert out.used == 1.0 and out.losses["commit"] == pytest.approx(float((points - quant.embed(brute)).pow(2).mean()))


def test_gradient_passes_straight_through():
    quant, points = VectorQuant(4, 2).eval(), torch.randn(7, 2, requires_grad=True)
    quant(points).vectors.sum().backward()
    assert torch.equal(points.grad, torch.ones(7, 2))


def test_codes_follow_moved_inputs_and_evaluation_leaves_them():
    generator = torch.Generator().manual_seed(1)
    _, points = clusters(generator)
    quant = VectorQuant(4, 2, decay=0.5)
    quant.start(points, generator)
    before = quant.codebook.clone()
    quant.eval()(points + 1)
    assert torch.equal(quant.codebook, before)
    quant.train()
    for _ in range(20):
        quant(points + 1)
    assert torch.allclose(quant.codebook, before + 1, atol=0.01)


def test_dead_codes_are_revived_with_all_their_averages():
    generator = torch.Generator().manual_seed(2)
    _, points = clusters(generator)
    quant = VectorQuant(8, 2, decay=0.5)
    quant.codebook.fill_(100.0)
    quant.codebook[0] = 0.0
    quant.sums.copy_(quant.codebook)
    assert quant.eval()(points).used == 1 / 8
    quant.train()
    for _ in range(12):
        quant(points, generator)
    assert quant.eval()(points).used == 1.0
    assert quant.codebook.abs().max() < 10


def test_bad_arguments():
    with pytest.raises(ValueError, match="4 codes need as many vectors, got 3"):
        VectorQuant(4, 2).start(torch.randn(3, 2))
    with pytest.raises(ValueError, match="codes and dim"):
        VectorQuant(0, 2)
    with pytest.raises(ValueError, match="decay must lie"):
        VectorQuant(2, 2, decay=1.0)

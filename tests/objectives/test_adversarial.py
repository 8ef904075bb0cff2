"""Attacks stay in their box, do what their equations say, and succeed where a random change does not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flambeau.objectives.adversarial import fgsm, pgd


def trained():
    """A linear classifier of points of which only the first of 20 values matters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 20, generator=generator)
    labels = (x[:, 0] > 0.5).long()
    torch.manual_seed(0)
    model = nn.Linear(20, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    model.zero_grad()
    return model, x, labels


def test_one_step_of_the_sign_of_the_gradient():
    model, x, labels = trained()
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), labels).backward()
    assert torch.equal(fgsm(model, x, labels, 0.1), (x + 0.1 * leaf.grad.sign()).clamp(0, 1))
    assert torch.equal(fgsm(model, x, labels, 0.1, bounds=None), x + 0.1 * leaf.grad.sign())


@pytest.mark.parametrize("random_start", [True, False])
def test_an_attack_stays_in_its_box_and_succeeds(random_start):
    model, x, labels = trained()
    noise = torch.Generator().manual_seed(1)
    moved = pgd(model, x, labels, 0.2, 0.05, 10, random_start=random_start, generator=noise)
    assert (moved - x).abs().max() <= 0.2 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    clean, attacked = (float((model(v).argmax(1) == labels).float().mean()) for v in (x, moved))
    shaken = (x + 0.2 * (2 * torch.rand(x.shape, generator=noise) - 1)).clamp(0, 1)
    assert clean > 0.95 and attacked < 0.6 < float((model(shaken).argmax(1) == labels).float().mean())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert not moved.requires_grad


def test_steps_ascend_and_the_generator_decides():
    model, x, labels = trained()
    losses = [
        F.cross_entropy(model(pgd(model, x, labels, 0.3, 0.02, steps, random_start=False)), labels)
        for steps in (1, 5, 10)
    ]
    assert losses == sorted(losses) and losses[0] > F.cross_entropy(model(x), labels)
    a, b, c = (pgd(model, x, labels, steps=1, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_works_without_gradients_outside():
    model, x, labels = trained()
    with torch.no_grad():
        moved = pgd(model, x, labels, steps=2, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(moved, x)


def test_bad_input():
    model, x, labels = trained()
    for change, message in (
        ({"epsilon": -1.0}, "epsilon and step_size must not be negative, got -1.0"),
        ({"step_size": float("nan")}, "epsilon and step_size must not be negative"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(smallest, largest\), got \(1.0, 0.0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd(model, x, labels, **change)
    with pytest.raises(TypeError, match="x must be floating point, got torch.uint8"):
        pgd(model, x.to(torch.uint8), labels)

"""LARS and LAMB against plain NumPy, through the trainer's resume, and with parameters of one axis left alone."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flambeau.data import Batches
from flambeau.training import Trainer
from flambeau.training.optimizers import LAMB, LARS


def problem():
    """Weights of two axes and of one, and a gradient for each of six steps; one matrix is zero at first."""
    torch.manual_seed(0)
    weights = [torch.randn(3, 4), torch.randn(4), torch.zeros(2, 2)]
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(6)]
    return [nn.Parameter(w.double()) for w in weights], [[g.double() for g in step] for step in gradients]


def run(optimizer, params, gradients, rates):
    for step, rate in zip(gradients, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p, g in zip(params, step):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach().numpy() for p in params]


RATES = (0.1, 0.1, 0.05, 0.2, 0.1, 0.1)


@pytest.mark.parametrize("exclude", [True, False])
def test_lars_is_its_definition(exclude):
    params, gradients = problem()
    expected = [p.detach().numpy().copy() for p in params]
    velocity = [np.zeros_like(w) for w in expected]
    for step, rate in zip(gradients, RATES):
        for i, g in enumerate(step):
            w, g = expected[i], g.numpy()
            d = g
            if w.ndim > 1 or not exclude:
                norms = np.linalg.norm(w), np.linalg.norm(g)
                factor = 0.02 * norms[0] / (norms[1] + 0.03 * norms[0]) if norms[0] > 0 else 1.0
                d = factor * (g + 0.03 * w)
            velocity[i] = 0.9 * velocity[i] + d
            expected[i] = w - rate * velocity[i]
    ours = run(LARS(params, weight_decay=0.03, trust=0.02, exclude_1d=exclude), params, gradients, RATES)
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("exclude", [True, False])
def test_lamb_is_its_definition(exclude):
    params, gradients = problem()
    expected = [p.detach().numpy().copy() for p in params]
    m, v = [np.zeros_like(w) for w in expected], [np.zeros_like(w) for w in expected]
    for count, (step, rate) in enumerate(zip(gradients, RATES), 1):
        for i, g in enumerate(step):
            w, g = expected[i], g.numpy()
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.95 * v[i] + 0.05 * g * g
            u = m[i] / (1 - 0.8**count) / (np.sqrt(v[i] / (1 - 0.95**count)) + 1e-6)
            if w.ndim > 1 or not exclude:
                u = u + 0.03 * w
                u = u * (np.linalg.norm(w) / np.linalg.norm(u) if np.linalg.norm(w) > 0 else 1.0)
            expected[i] = w - rate * u
    ours = run(LAMB(params, betas=(0.8, 0.95), weight_decay=0.03, exclude_1d=exclude), params, gradients, RATES)
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_step_is_as_long_as_the_weights_allow():
    """The step does not depend on the gradient's length: that is what the methods are for."""
    for kind, rate in ((LARS, 1.0), (LAMB, 0.01)):
        moved = []
        for scale in (1.0, 1000.0):
            w = nn.Parameter(torch.arange(1.0, 7.0).reshape(2, 3))
            before = w.detach().clone()
            w.grad = scale * torch.tensor([[1.0, -2.0, 3.0], [1.0, 1.0, -1.0]])
            kind([w], lr=rate, weight_decay=0.0).step()
            moved.append((w.detach() - before).norm())
        torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=0)


def _squares(model, batch):
    return (model(batch) - 1).square().mean()


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(kind, tmp_path):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def fit(steps, folder):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        trainer = Trainer(steps=6, optimizer=partial(kind, lr=0.02), save_every=1, keep=9)
        if steps < 6:  # stopped by an error after the checkpoint of step `steps`
            calls = []

            def stops(model, batch):
                calls.append(0)
                if len(calls) > steps:
                    raise KeyboardInterrupt
                return _squares(model, batch)

            stops.__module__, stops.__qualname__ = _squares.__module__, _squares.__qualname__
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(model, stops, Batches(x, 8), folder=folder)
            return None
        trainer.fit(model, _squares, Batches(x, 8), folder=folder)
        return model

    fit(3, tmp_path / "a")
    resumed, whole = fit(6, tmp_path / "a"), fit(6, tmp_path / "b")
    for a, b in zip(resumed.state_dict().values(), whole.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LARS, dict(lr=-1.0), "lr must not be negative, got -1"),
        (LARS, dict(momentum=1.0), "momentum must lie in"),
        (LAMB, dict(betas=(0.9, 1.0)), "betas must lie in"),
        (LAMB, dict(eps=-1e-8), "eps must not be negative"),
    ],
)
def test_bad_values_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(torch.zeros(2, 2))], **arguments)

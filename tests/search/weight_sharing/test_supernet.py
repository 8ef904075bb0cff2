"""A super-network is each of its children, and its mixture has the right gradient."""

import random

import pytest
import torch
from torch import nn

from flambeau.search.weight_sharing.elastic import Repeat
from flambeau.search.weight_sharing.supernet import Supernet, extract
from flambeau.symbolic import floatv, intv, manyof, oneof, symbolize

Sequential, Linear, Conv2d, BatchNorm2d = map(symbolize, (nn.Sequential, nn.Linear, nn.Conv2d, nn.BatchNorm2d))
ReLU, Tanh, Sigmoid, Flatten, LeakyReLU, MaxPool2d, Pool = map(
    symbolize, (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Flatten, nn.LeakyReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
)


class Scaled(nn.Module):
    """A residual block that multiplies its branch by a number."""

    def __init__(self, inner: nn.Module, factor: float):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return x + self.factor * self.inner(x)


def convolutional():
    def width():
        return oneof([4, 8], name="width")

    return Sequential(
        Conv2d(2, width(), oneof([1, 3, 5]), padding="same"),
        BatchNorm2d(width()),
        oneof([ReLU(), Sigmoid(), Sequential(Conv2d(width(), width(), 3, padding=1), Tanh())]),
        MaxPool2d(2),
        Conv2d(width(), 6, oneof([1, 3]), padding="same", bias=False),
        symbolize(Scaled)(Conv2d(6, 6, 1), factor=oneof([0.0, 0.5, 2.0])),
        LeakyReLU(oneof([0.01, 0.3])),
        Pool(1),
        Flatten(),
        symbolize(Repeat)(symbolize(nn.Linear).partial(6, 6), times=oneof([0, 1, 3])),
        Linear(6, 3),
    )


def dense():
    return Sequential(
        Linear(5, intv(2, 6, name="w")),
        oneof([Tanh(), Sigmoid()]),
        Linear(intv(2, 6, name="w"), 4, bias=False),
        symbolize(Repeat)(
            make=symbolize(nn.Sequential).partial(Linear(4, 4), oneof([Tanh(), ReLU()])), times=intv(1, 3)
        ),
    )


CASES = {"convolutional": (convolutional, (7, 2, 8, 8)), "dense": (dense, (7, 5))}
each = pytest.mark.parametrize("make, shape", CASES.values(), ids=CASES)


@each
@pytest.mark.parametrize("training", [True, False])
def test_one_hot_equals_the_extracted_child(make, shape, training):
    torch.manual_seed(0)
    supernet, rng = Supernet(make()).train(training), random.Random(0)
    x, y = torch.randn(shape), torch.randn(shape)
    with torch.no_grad():
        for parameter in supernet.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that biases and norms are not at their start
    for _ in range(30):
        dna = supernet.spec.random(rng)
        child = extract(supernet, dna)
        assert isinstance(child, nn.Sequential) and not any(
            "elastic" in type(m).__module__ and not isinstance(m, Repeat) for m in child.modules()
        )
        supernet.choose(dna)
        supernet(y), child(y)  # moves running statistics, of both alike
        torch.testing.assert_close(supernet(x), child(x), atol=1e-6, rtol=0)


@each
def test_every_decision_changes_the_child(make, shape):
    torch.manual_seed(0)
    supernet, x = Supernet(make()).eval(), torch.randn(shape)
    start = supernet.spec.first()
    supernet.choose(start)
    base = supernet(x)
    for decision, _ in supernet.spec.decisions(start):
        changed = supernet.spec.to_dict(start)
        changed[decision.name] = len(decision.options) - 1
        supernet.choose(supernet.spec.from_dict(changed))
        assert not torch.allclose(supernet(x), base, atol=1e-4), decision.name


@each
def test_mixture_gradient_equals_finite_differences(make, shape):
    torch.manual_seed(0)
    supernet = Supernet(make()).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    for logits in supernet.architecture_parameters():
        nn.init.normal_(logits)
    supernet(x).square().sum().backward()
    step = 1e-6
    for logits in supernet.architecture_parameters():
        for i in range(len(logits)):
            with torch.no_grad():
                values = []
                for sign in (1, -1):
                    logits[i] += sign * step
                    values.append(supernet(x).square().sum())
                    logits[i] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert abs(numeric - logits.grad[i]) <= 1e-5 * max(1.0, abs(float(numeric)))


def test_mixture_with_one_sure_option_is_that_child():
    torch.manual_seed(0)
    supernet, x = Supernet(dense()).eval(), torch.randn(3, 5)
    dna = supernet.spec.random(random.Random(3))
    supernet.choose(dna)
    alone = supernet(x)
    for name, value in supernet._chosen.items():
        with torch.no_grad():
            supernet.logits[supernet._names[name]].fill_(-60.0)[value] = 60.0
    supernet.relax()
    torch.testing.assert_close(supernet(x), alone)
    assert supernet.derive() == dna


def test_training_one_child_leaves_the_rest_alone():
    torch.manual_seed(0)
    supernet = Supernet(Sequential(oneof([Linear(4, 2), Linear(4, 2), Tanh()], name="kind")))
    supernet.choose(supernet.spec.from_numbers([1]))
    supernet(torch.randn(3, 4)).sum().backward()
    candidates = supernet.module[0].candidates
    assert candidates[0].weight.grad is None and candidates[1].weight.grad is not None
    assert all(logits.grad is None for logits in supernet.architecture_parameters())
    assert len(supernet.weight_parameters()) == 4


def test_gradient_search_prefers_the_right_operation():
    """DARTS on y = relu(x): the switch between three functions settles on ReLU."""
    torch.manual_seed(0)
    supernet = Supernet(Sequential(oneof([Tanh(), ReLU(), Sigmoid()], name="kind")))
    optimizer = torch.optim.Adam(supernet.architecture_parameters(), 0.1)
    for _ in range(150):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        (supernet(x) - x.relu()).square().mean().backward()
        optimizer.step()
    assert supernet.derive().to_numbers() == [1]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Sequential(LeakyReLU(floatv(0.1, 0.2))), "only oneof"),
        (lambda: Sequential(*[manyof(2, [Tanh(), ReLU()])]), "only oneof"),
        (lambda: Sequential(oneof([lambda: Tanh()])), "only oneof"),
        (lambda: Sequential(Conv2d(2, 2, oneof([3, 5]), padding=1)), "padding='same'"),
        (lambda: Sequential(Conv2d(2, oneof([2, 4]), 3, groups=2)), "groups=1"),
        (lambda: symbolize(Scaled)(Tanh(), factor=oneof(["a", "b"])), "expected"),
    ],
)
def test_what_cannot_be_lowered(make, said):
    with pytest.raises(ValueError, match=said):
        Supernet(make())

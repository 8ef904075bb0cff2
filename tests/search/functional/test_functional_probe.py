import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flambeau.data.nas.nasbench import OPERATIONS, Cell, enumerate_cells
from flambeau.experiment.search.cache_replay import cell_probe, unshared_key
from flambeau.models.vision.cell_network import CellNetwork
from flambeau.search import functional_hash
from flambeau.search.functional.collision_study import collision_study, collisions
from flambeau.search.functional.key import FAILURES, hash_numbers
from flambeau.search.functional.probe import (
    FunctionProbe,
    OptimizerProbe,
    Probe,
    ProbeError,
    by_order,
    random_inputs,
)
from flambeau.symbolic import symbolize

X, Y = torch.linspace(-1, 1, 48).view(12, 4), torch.arange(12) % 3
PROBE = Probe((X[:8], Y[:8]), (X[8:], Y[8:]))


def net(width=6, activation=nn.Tanh, **options):
    return lambda: nn.Sequential(nn.Linear(4, width, **options), activation(), nn.Linear(width, 3))


class Branches(nn.Module):
    """Two branches, constructed and added up in either order."""

    def __init__(self, order, p=0.0):
        super().__init__()
        layers = {"a": partial(nn.Linear, 4, 5), "b": partial(nn.Linear, 4, 5, bias=False)}
        self.order = order
        self.branches = nn.ModuleDict({name: layers[name]() for name in order})
        self.dropouts = nn.ModuleDict({name: nn.Dropout(p + 0.1 * (name == "b")) for name in order} if p else {})
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        total = 0
        for name in self.order:
            value = self.branches[name](x)
            total = total + (self.dropouts[name](value) if name in self.dropouts else value).tanh()
        return self.head(total)


# -- cells -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell_numbers():
    """Number vectors of 260 random labelled cells and of another labelling of each."""
    probe, rng, found = cell_probe(), random.Random(0), {}
    while len(found) < 520:
        cell = Cell.from_edges([rng.randint(0, 1) for _ in range(10)], [rng.choice(OPERATIONS) for _ in range(3)])
        if cell.pruned is None or cell.pruned in found:
            continue
        for same in {cell.pruned, relabelled(cell.pruned, rng)}:
            found[same] = probe.numbers(same)
    return found


def relabelled(cell, rng):
    """The same graph with its inner vertices in another order, if there is one."""
    n = len(cell.matrix)
    for _ in range(20):
        order = [0, *rng.sample(range(1, n - 1), n - 2), n - 1]
        rows = tuple(tuple(cell.matrix[i][j] for j in order) for i in order)
        if all(rows[i][j] == 0 for i in range(n) for j in range(i + 1)):
            return Cell(rows, tuple(cell.operations[i - 1] for i in order[1:-1]))
    return cell


def test_no_cell_is_split_and_none_is_merged(cell_numbers):
    assert len(cell_numbers) >= 500
    truth = [unshared_key(cell) for cell in cell_numbers]
    assert len(set(truth)) < 0.85 * len(truth)  # many labellings of the same
    for bits in (8, 24):
        found = collisions([hash_numbers(values, bits) for values in cell_numbers.values()], truth)
        assert found.split == 0 and found.merged == 0 and found.keys == found.functions


def test_collisions_fall_with_bits(cell_numbers):
    truth = [unshared_key(cell) for cell in cell_numbers]
    rows = collision_study({4: list(cell_numbers.values())}, truth, range(1, 25))
    merged = [row["merged"] for row in rows]
    assert merged[0] > 0.5 and merged == sorted(merged, reverse=True) and merged[-1] == 0


def test_a_pool_used_twice_is_two_pools():
    """No graph hash sees it: a pool that feeds a convolution and the output, or one pool for each."""
    shared = Cell(((0, 1, 0, 0), (0, 0, 1, 1), (0, 0, 0, 1), (0,) * 4), ("maxpool3x3", "conv3x3"))
    apart = Cell(
        ((0, 1, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 1), (0,) * 5),
        ("maxpool3x3", "maxpool3x3", "conv3x3"),
    )
    probe = cell_probe()
    assert shared.key != apart.key and unshared_key(shared) == unshared_key(apart)
    assert hash_numbers(probe.numbers(shared)) == hash_numbers(probe.numbers(apart))
    convolutions = [
        Cell(shared.matrix, ("conv3x3", "conv3x3")),
        Cell(apart.matrix, ("conv3x3", "conv3x3", "conv3x3")),
    ]
    first, second = (hash_numbers(probe.numbers(cell)) for cell in convolutions)  # these have parameters of their own
    assert first != second


def test_there_are_2520_functions_of_2532_graphs():
    assert len({unshared_key(cell) for cell in enumerate_cells()}) == 2520


def test_the_whole_network_of_a_cell_in_float32_too():
    cell = Cell.from_edges([1, 1, 0, 1, 0, 1], ["conv3x3", "maxpool3x3"])
    other = Cell.from_edges([1, 1, 0, 0, 1, 1], ["maxpool3x3", "conv3x3"])
    images, labels = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    probe = Probe((images, labels), (images[:4], labels[:4]), dtype=torch.float32)
    keys = [functional_hash(partial(CellNetwork, c, channels=4), probe, 12) for c in (cell, other)]
    assert keys[0] != keys[1] and min(keys) >= 16


# -- modules ---------------------------------------------------------------------------------------------------------


def test_order_of_construction_and_of_branches_does_not_matter():
    assert functional_hash(lambda: Branches("ab"), PROBE) == functional_hash(lambda: Branches("ba"), PROBE)
    ordered = Probe((X[:8], Y[:8]), (X[8:], Y[8:]), init=by_order)
    assert functional_hash(lambda: Branches("ab"), ordered) != functional_hash(lambda: Branches("ba"), ordered)


def test_dropout_is_a_function_of_rate_and_shape():
    with_p = [functional_hash(lambda order=order, p=p: Branches(order, p), PROBE) for order, p in
              [("ab", 0.2), ("ba", 0.2), ("ab", 0.3)]]  # fmt: skip
    assert with_p[0] == with_p[1] != with_p[2]
    assert with_p[0] != functional_hash(lambda: Branches("ab"), PROBE)


def test_what_differs_has_another_key():
    factories = [net(), net(7), net(activation=nn.ReLU), net(bias=False)]
    keys = [functional_hash(factory, PROBE) for factory in factories]
    assert len(set(keys)) == 4
    assert keys == [functional_hash(factory, PROBE) for factory in factories]  # again
    other = Probe((X[:8], Y[:8]), (X[8:], Y[8:]), seed=1)
    assert functional_hash(net(), other) != keys[0]


def test_equivalent_modules():
    doubled = lambda: nn.Sequential(net()(), nn.Identity(), nn.Dropout(0.0))  # noqa: E731
    assert functional_hash(doubled, PROBE) == functional_hash(net(), PROBE)
    assert functional_hash(net(activation=nn.ReLU), PROBE) == functional_hash(
        net(activation=partial(nn.Threshold, 0.0, 0.0)), PROBE
    )


def test_batch_norm_is_frozen():
    def normed():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    halves = [Probe((X[:n], Y[:n]), (X[8:], Y[8:]), steps=0) for n in (2, 8)]
    assert functional_hash(normed, halves[0]) == functional_hash(normed, halves[1])
    assert functional_hash(normed, PROBE) != functional_hash(lambda: nn.Sequential(normed()[0], normed()[2]), PROBE)


def test_own_initial_values_stay_and_random_ones_do_not_matter():
    class Scaled(nn.Module):
        def __init__(self, scale, std=1.0):
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor([scale]))
            nn.init.normal_(self.linear.weight, std=std)

        def forward(self, x):
            return self.scale * self.linear(x)

    keys = [functional_hash(lambda a=a: Scaled(*a), PROBE) for a in [(0.1,), (0.2,), (0.1, 5.0)]]
    assert keys[0] != keys[1] and keys[0] == keys[2]


def test_nodes_regression_and_modules_without_parameters():
    node = symbolize(nn.Sequential)(symbolize(nn.Flatten)(), symbolize(nn.Linear)(4, 3))
    assert functional_hash(node, PROBE) == functional_hash(lambda: nn.Linear(4, 3), PROBE)
    regression = Probe((X[:8], X[:8, :1].sin()), (X[8:], X[8:, :1]), steps=2)
    assert functional_hash(lambda: nn.Linear(4, 1), regression) >= 16
    assert functional_hash(nn.Identity, Probe((X[:8], X[:8]), (X[8:], X[8:]), steps=2)) >= 16


def test_nothing_outside_changes():
    torch.manual_seed(5)
    expected, before = torch.rand(1), torch.get_default_dtype()
    torch.manual_seed(5)
    functional_hash(lambda: Branches("ab", 0.3), PROBE)
    assert torch.rand(1) == expected and torch.get_default_dtype() == before
    assert torch.get_deterministic_debug_mode() == 0


def test_failing_modules():
    with pytest.warns(UserWarning, match="a candidate failed under the probe: RuntimeError"):
        assert functional_hash(lambda: nn.Linear(9, 3), PROBE) == FAILURES["exception"]
    hot = Probe((X[:8] * 1e30, X[:8]), (X[8:], X[8:]), lr=1e30)
    assert functional_hash(lambda: nn.Linear(4, 4), hot) in (FAILURES["nan"], FAILURES["inf"])


def test_bad_probes_and_candidates():
    with pytest.raises(ValueError, match="train: expected at least 1 example"):
        Probe((X[:0], Y[:0]), (X, Y))
    with pytest.raises(ValueError, match="val: expected at least 1 example"):
        Probe((X, Y), (X[:0], Y[:0]))
    with pytest.raises(ValueError, match="val: expected a pair"):
        Probe((X, Y), X)
    with pytest.raises(ValueError, match=r"steps: expected 0..12"):
        Probe((X, Y), (X, Y), steps=13)
    with pytest.raises(ProbeError, match="expected a function that makes the module"):
        functional_hash(nn.Linear(4, 3), PROBE)
    with pytest.raises(ProbeError, match="factory of an nn.Module, it made a int"):
        functional_hash(lambda: 3, PROBE)
    with pytest.raises(ProbeError, match="expected a factory or an estimator, got int"):
        functional_hash(3, PROBE)
    with pytest.raises(ProbeError, match=r"on meta, whose sums .* allow_nondeterministic=True"):
        functional_hash(lambda: nn.Linear(4, 3, device="meta"), PROBE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_when_allowed():
    on_gpu = lambda: nn.Linear(4, 3).cuda()  # noqa: E731
    with pytest.raises(ProbeError, match="allow_nondeterministic"):
        functional_hash(on_gpu, PROBE)
    allowed = Probe((X[:8], Y[:8]), (X[8:], Y[8:]), allow_nondeterministic=True)
    assert functional_hash(on_gpu, allowed) == functional_hash(lambda: nn.Linear(4, 3), allowed)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))

    def forward(self, x):
        return x @ self.a + (x @ self.b).tanh()


def test_parameters_without_a_role():
    with pytest.raises(ProbeError, match=r"no init key for the parameter 'a' of Table.*init=by_order"):
        functional_hash(Table, PROBE)
    ordered = Probe((X[:8], Y[:8]), (X[8:], Y[8:]), init=by_order)
    assert functional_hash(Table, ordered) >= 16
    named = type("Named", (Table,), {"init_key": lambda self, name: ("table", name)})
    assert functional_hash(named, PROBE) >= 16
    with pytest.raises(ProbeError, match="ParameterList"):
        functional_hash(lambda: nn.Sequential(nn.Linear(4, 3), nn.ParameterList([torch.randn(2, 2)])), PROBE)


# -- functions, update rules, estimators -----------------------------------------------------------------------------


def test_functions_by_value():
    probe = FunctionProbe(random_inputs((64,)))
    same = [
        (lambda x: x + x, lambda x: 2 * x),
        (torch.nn.functional.silu, lambda x: x * torch.sigmoid(x)),
        (lambda x: x.sin() ** 2 + x.cos() ** 2 - 1, lambda x: 0 * x),
        (lambda x: torch.relu(x) - torch.relu(-x), lambda x: x),
    ]
    for a, b in same:
        assert functional_hash(a, probe) == functional_hash(b, probe)
    keys = {functional_hash(f, probe) for f in (torch.sigmoid, torch.tanh, lambda x: 1.01 * x, lambda x: x)}
    assert len(keys) == 4


def test_gradients_tell_equal_values_apart():
    stopped = lambda x: x.detach() ** 2  # noqa: E731
    by_value, by_gradient = (FunctionProbe(random_inputs((8,)), gradients=g) for g in (False, True))
    assert functional_hash(stopped, by_value) == functional_hash(torch.square, by_value)
    assert functional_hash(stopped, by_gradient) != functional_hash(torch.square, by_gradient)
    two = FunctionProbe(random_inputs((8,), (8,)), gradients=True)
    a = functional_hash(lambda p, t: (p - t) ** 2, two)
    assert a == functional_hash(lambda p, t: p * p - 2 * p * t + t * t, two)
    assert a != functional_hash(lambda p, t: (p - t).abs(), two)


def test_any_callable_and_arrays():
    arrays = FunctionProbe((np.arange(6.0), 3))
    assert functional_hash(lambda a, n: np.sort(a)[:n], arrays) == functional_hash(lambda a, n: a[:n], arrays)
    settings = FunctionProbe(())
    nested, plain = (lambda: [0.5, (1, np.ones(2))]), (lambda: (0.5, 1, 1, 1))
    assert functional_hash(nested, settings) == functional_hash(plain, settings)
    with pytest.raises(ProbeError, match="expected it to return numbers"):
        functional_hash(lambda: "text", settings)
    with pytest.raises(ProbeError, match="expected a function, got int"):
        functional_hash(5, settings)


def test_candidates_cannot_change_the_inputs_of_others():
    probe = FunctionProbe((np.zeros(3), torch.zeros(3)))

    def write(a, t):
        a += 1
        t += 1
        return a, t

    assert functional_hash(write, probe) == functional_hash(write, probe)


def test_update_rules():
    probe = OptimizerProbe()

    class Descent:
        def __init__(self, parameters):
            self.parameters = parameters

        @torch.no_grad()
        def step(self):
            for parameter in self.parameters:
                parameter -= parameter.grad / 10

    sgd, adam = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.1)
    assert functional_hash(Descent, probe) == functional_hash(sgd, probe)
    assert functional_hash(adam, probe) == functional_hash(partial(torch.optim.AdamW, lr=0.1, weight_decay=0), probe)
    others = [sgd, adam, partial(torch.optim.SGD, lr=0.11), partial(torch.optim.SGD, lr=0.1, momentum=0.5)]
    assert len({functional_hash(rule, probe) for rule in others}) == 4
    with pytest.raises(ValueError, match="at least 1 each"):
        OptimizerProbe(steps=0)


def test_estimators():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    forest = RandomForestClassifier(5)
    assert functional_hash(forest, PROBE) == functional_hash(RandomForestClassifier(5), PROBE)
    assert not hasattr(forest, "estimators_") and forest.random_state is None
    assert functional_hash(partial(RandomForestClassifier, 5), PROBE) == functional_hash(forest, PROBE)
    piped = make_pipeline("passthrough", RandomForestClassifier(5))
    assert functional_hash(piped, PROBE) == functional_hash(forest, PROBE)
    uniform, p2 = KNeighborsClassifier(3), KNeighborsClassifier(3, metric="euclidean")
    assert functional_hash(uniform, PROBE) == functional_hash(p2, PROBE)
    assert functional_hash(uniform, PROBE) != functional_hash(KNeighborsClassifier(5), PROBE)
    (x,) = random_inputs((12, 4))
    regression = Probe((x[:8], x[:8, 0].sin()), (x[8:], x[8:, 0]))
    assert functional_hash(linear.Ridge(0.0), regression) == functional_hash(linear.LinearRegression(), regression)

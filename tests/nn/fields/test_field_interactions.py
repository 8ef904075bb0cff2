from itertools import combinations
from math import prod

import pytest
import torch

from flambeau.nn.fields.interactions import (
    AttentionalPairs,
    CompressedInteraction,
    CrossNet,
    ResidualUnit,
    anova_kernel,
    bi_interaction,
    tower,
)

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_bi_interaction_is_the_sum_over_pairs():
    torch.testing.assert_close(bi_interaction(X), sum(X[:, i] * X[:, j] for i, j in combinations(range(5), 2)))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_anova_kernel_is_the_sum_over_sets(order):
    expected = sum(prod(X[:, i] for i in chosen) for chosen in combinations(range(5), order))
    torch.testing.assert_close(anova_kernel(X, order), expected)
    with pytest.raises(ValueError, match="order"):
        anova_kernel(X, 0)


def test_attentional_pairs_weigh_every_pair():
    torch.manual_seed(0)
    layer = AttentionalPairs(4, 8)
    for row in range(3):
        pairs = torch.stack([X[row, i] * X[row, j] for i, j in combinations(range(5), 2)])
        weights = torch.cat([layer.score(pair) for pair in pairs]).softmax(0)
        torch.testing.assert_close(layer(X)[row], (weights[:, None] * pairs).sum(0))


def test_cross_net_multiplies_by_the_record():
    torch.manual_seed(0)
    net, x = CrossNet(4, 2), X[:, 0]
    torch.nn.init.normal_(net.bias)
    first = torch.stack([x0 * (x0 @ net.weight[0]) + net.bias[0] + x0 for x0 in x])
    second = torch.stack([x0 * (x1 @ net.weight[1]) + net.bias[1] + x1 for x0, x1 in zip(x, first)])
    torch.testing.assert_close(net(x), second)


def test_compressed_interaction_has_the_products_of_all_maps_and_fields():
    torch.manual_seed(0)
    net = CompressedInteraction(5, (3, 2))
    first, second = (layer.weight.view(layer.out_features, -1, 5) for layer in net.layers)
    one = sum(first[:, h, m, None] * (X[:, None, h] * X[:, None, m]) for h in range(5) for m in range(5))
    two = sum(second[:, h, m, None] * (one[:, None, h] * X[:, None, m]) for h in range(3) for m in range(5))
    torch.testing.assert_close(net(X), torch.cat([one.sum(2), two.sum(2)], 1))


def test_a_residual_unit_without_weights_is_a_relu():
    unit = ResidualUnit(4, 6)
    for parameter in unit.second.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(unit(X[:, 0]), X[:, 0].relu())
    assert tower(4, (8, 8), batch_norm=True)(X[:, 0]).shape == (3, 1)

import math

import pytest
import torch

from flambeau.nn.fields.interacting import InteractingLayer, uniform_attention


def naive(layer, x):
    """Equations 5 to 8 with a loop over every head and pair of fields."""
    width, size = layer.width, layer.width // layer.heads
    repo = layer.variant == "repo"
    blocks = [block.detach() for block in layer.project.weight.split(width)]
    biases = [torch.zeros(width).double()] * 4
    if layer.project.bias is not None:
        biases = layer.project.bias.detach().split(width)
    out = torch.zeros(*x.shape[:2], width).double()
    for row in range(len(x)):
        projected = []
        for block, bias in zip(blocks, biases):
            full = [block @ vector + bias for vector in x[row]]
            projected.append([vector.clamp_min(0) for vector in full] if repo else full)
        q, k, v = projected[:3]
        for m in range(x.shape[1]):
            for head in range(layer.heads):
                part = slice(head * size, (head + 1) * size)
                scores = [float(q[m][part] @ key[part]) for key in k]
                if repo:
                    scores = [score / math.sqrt(size) for score in scores]
                total = sum(math.exp(score) for score in scores)
                for score, value in zip(scores, v):
                    out[row, m, part] += math.exp(score) / total * value[part]
            if layer.residual:
                out[row, m] += projected[3][m]
            out[row, m] = out[row, m].clamp_min(0)
            if repo:
                centred = out[row, m] - out[row, m].mean()
                out[row, m] = centred / (centred.square().mean() + 1e-8).sqrt() * layer.norm.weight + layer.norm.bias
    return out


@pytest.mark.parametrize("variant", ["paper", "repo"])
@pytest.mark.parametrize("residual", [True, False])
def test_equals_the_loop_over_fields(variant, residual):
    torch.manual_seed(0)
    layer = InteractingLayer(5, 12, 3, variant=variant, residual=residual)
    if layer.project.bias is not None:
        torch.nn.init.uniform_(layer.project.bias, 0, 0.5)
    layer, x = layer.double(), torch.randn(3, 4, 5).double()
    expected = naive(layer, x)
    for out in (layer(x), layer.with_attention(x)[0]):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "repo"])
def test_order_of_the_fields_does_not_matter(variant):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*[InteractingLayer(8, 8, 2, variant=variant) for _ in range(3)])
    x, order = torch.randn(2, 6, 8), torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(layers(x[:, order]), layers(x)[:, order], rtol=0, atol=1e-5)


def test_attention_rows_sum_to_one_and_one_field_attends_to_itself():
    torch.manual_seed(0)
    layer = InteractingLayer(4, 8, 2)
    _, attention = layer.with_attention(torch.randn(3, 5, 4))
    assert attention.shape == (3, 2, 5, 5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 5))
    assert (layer.with_attention(torch.randn(3, 1, 4))[1] == 1).all()


def test_identity_values_give_a_convex_combination():
    torch.manual_seed(0)
    layer = InteractingLayer(6, 6, 1, variant="paper", residual=False)
    with torch.no_grad():
        layer.project.weight[12:] = torch.eye(6)
    x = torch.rand(4, 5, 6)  # positive, so that the ReLU leaves the combination as it is
    out, attention = layer.with_attention(x)
    torch.testing.assert_close(out, attention[:, 0] @ x)
    assert (out <= x.amax(1, keepdim=True) + 1e-6).all() and (out >= x.amin(1, keepdim=True) - 1e-6).all()


def mixed_derivative(function, x, i, j):
    """d2 f / dx_i dx_j of scalar numbers x."""
    first = torch.autograd.grad(function(x), x, create_graph=True)[0][i]
    return float(torch.autograd.grad(first, x, allow_unused=True, materialize_grads=True)[0][j])


def test_what_interacts_comes_from_the_attention_alone():
    """Uniform attention leaves the logit additive in the fields (without ReLU); learned queries do not."""
    torch.manual_seed(0)
    layer = InteractingLayer(3, 4, 2, variant="paper").double()
    vectors, readout = torch.randn(5, 3).double(), torch.randn(5 * 4).double()

    def logit(x):
        q, k, v, rest = layer._projections((x[:, None] * vectors)[None])
        attended = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return (attended.transpose(1, 2).flatten(2) + rest).flatten() @ readout

    x = torch.randn(5).double().requires_grad_()
    assert abs(mixed_derivative(logit, x, 0, 3)) > 1e-3
    uniform_attention(layer)
    assert max(abs(mixed_derivative(logit, x, i, j)) for i in range(5) for j in range(i)) < 1e-12


def test_dropout_is_a_rate():
    torch.manual_seed(0)
    layer, x = InteractingLayer(4, 8, 2, dropout=0.5), torch.randn(2, 5, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), layer.with_attention(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "heads": 3}, "width must be divisible by heads, got width 10 and heads 3"),
        ({"variant": "tensorflow"}, "variant must be"),
        ({"dropout": 1.0}, "dropout must lie"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        InteractingLayer(4, **options)

"""Weights of the authors' code: the imported network computes the published equations, written out here by loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from flambeau.models.series.thuml import import_thuml

SIZES = dict(seq_len=20, label_len=7, pred_len=9, heads=4, kernel=5, factor=3)
DIM, FF, C, MARKS = 16, 24, 3, 4


def random_weights(seed=0, decoder_layers=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"decoder.projection.weight": (C, DIM), "decoder.projection.bias": (C,)}
    for side in ("enc", "dec"):
        shapes[f"{side}_embedding.value_embedding.tokenConv.weight"] = (DIM, C, 3)
        shapes[f"{side}_embedding.temporal_embedding.embed.weight"] = (DIM, MARKS)
        shapes[f"{side}_embedding.position_embedding.pe"] = (1, 5000, DIM)
    for stack, layers, mixings in (
        ("encoder.attn_layers", 2, ("attention",)),
        ("decoder.layers", decoder_layers, ("self_attention", "cross_attention")),
    ):
        for layer in range(layers):
            for mixing in mixings:
                for part in ("query", "key", "value", "out"):
                    shapes[f"{stack}.{layer}.{mixing}.{part}_projection.weight"] = (DIM, DIM)
                    shapes[f"{stack}.{layer}.{mixing}.{part}_projection.bias"] = (DIM,)
            shapes[f"{stack}.{layer}.conv1.weight"] = (FF, DIM, 1)
            shapes[f"{stack}.{layer}.conv2.weight"] = (DIM, FF, 1)
            if stack.startswith("decoder"):
                shapes[f"{stack}.{layer}.projection.weight"] = (C, DIM, 3)
    for stack in ("encoder", "decoder"):
        shapes[f"{stack}.norm.layernorm.weight"] = shapes[f"{stack}.norm.layernorm.bias"] = (DIM,)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def reference(w, x, x_mark, y_mark):
    """Autoformer in evaluation, from equations 1 to 8 of the paper, one series and one lag at a time."""
    seq_len, label_len, pred_len, heads, kernel, factor = SIZES.values()

    def average(s):
        rows = [
            s[:, [min(max(t + d, 0), s.shape[1] - 1) for d in range(-(kernel // 2), kernel // 2 + 1)]].mean(1)
            for t in range(s.shape[1])
        ]
        return torch.stack(rows, dim=1)

    def circular(s, weight):
        return sum(s.roll(1 - i, dims=1) @ weight[:, :, i].T for i in range(3))

    def mixing(prefix, s, context):
        q, k, v = (
            z @ w[f"{prefix}.{p}_projection.weight"].T + w[f"{prefix}.{p}_projection.bias"]
            for p, z in (("query", s), ("key", context), ("value", context))
        )
        length = s.shape[1]
        k, v = (F.pad(z, (0, 0, 0, max(0, length - z.shape[1])))[:, :length] for z in (k, v))
        out = torch.zeros_like(v)
        for b in range(len(s)):
            r = torch.stack([(q[b].roll(-lag, dims=0) * k[b]).sum() / DIM for lag in range(length)])
            top = r.topk(int(factor * math.log(length)))
            for weight, lag in zip(top.values.softmax(0), top.indices.tolist()):
                out[b] += weight * v[b].roll(-lag, dims=0)
        return out @ w[f"{prefix}.out_projection.weight"].T + w[f"{prefix}.out_projection.bias"]

    def feed_forward(prefix, s):
        return F.gelu(s @ w[f"{prefix}.conv1.weight"][:, :, 0].T) @ w[f"{prefix}.conv2.weight"][:, :, 0].T

    def norm(stack, s):
        s = F.layer_norm(s, (DIM,), w[f"{stack}.norm.layernorm.weight"], w[f"{stack}.norm.layernorm.bias"])
        return s - s.mean(1, keepdim=True)

    def embed(side, s, mark):
        values = circular(s, w[f"{side}_embedding.value_embedding.tokenConv.weight"])
        return values + mark @ w[f"{side}_embedding.temporal_embedding.embed.weight"].T

    e = embed("enc", x, x_mark)
    for layer in range(2):
        prefix = f"encoder.attn_layers.{layer}"
        e = e + mixing(f"{prefix}.attention", e, e)
        e = e - average(e)
        e = e + feed_forward(prefix, e)
        e = e - average(e)
    e = norm("encoder", e)
    mean = x.mean(1, keepdim=True).expand(-1, pred_len, -1)
    trend = torch.cat([average(x)[:, seq_len - label_len :], mean], 1)
    s = torch.cat([(x - average(x))[:, seq_len - label_len :], torch.zeros_like(mean)], 1)
    s = embed("dec", s, y_mark)
    for layer in range(2):
        prefix, shed = f"decoder.layers.{layer}", 0
        for part in ("self_attention", "cross_attention", "feed forward"):
            context = e if part == "cross_attention" else s
            step = feed_forward(prefix, s) if part == "feed forward" else mixing(f"{prefix}.{part}", s, context)
            s = s + step
            shed = shed + average(s)
            s = s - average(s)
        trend = trend + circular(shed, w[f"{prefix}.projection.weight"])
    out = norm("decoder", s) @ w["decoder.projection.weight"].T + w["decoder.projection.bias"] + trend
    return out[:, label_len:]


def example():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, n, c, generator=g, dtype=torch.float64) for n, c in ((20, C), (20, MARKS), (16, MARKS))]


def test_imported_weights_compute_the_published_equations():
    weights = random_weights()
    model = import_thuml(weights, **SIZES).eval()
    inputs = example()
    expected = reference({name: tensor.double() for name, tensor in weights.items()}, *inputs)
    out = model(*(x.float() for x in inputs))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, suffix):
    weights, path = random_weights(), tmp_path / f"checkpoint{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    inputs = [x.float() for x in example()]
    torch.testing.assert_close(
        import_thuml(path, **SIZES).eval()(*inputs), import_thuml(weights, **SIZES).eval()(*inputs)
    )


def test_nothing_is_executed_from_a_file(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    torch.save({"decoder.projection.weight": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        import_thuml(tmp_path / "bad.pth")


def test_weights_that_do_not_fit():
    weights = random_weights()
    with pytest.raises(ValueError, match="unknown name 'encoder.other.weight'"):
        import_thuml({**weights, "encoder.other.weight": torch.zeros(1)}, **SIZES)
    with pytest.raises(ValueError, match="no encoder_embedding.marks.weight"):
        import_thuml({n: t for n, t in weights.items() if "enc_embedding.temporal" not in n}, **SIZES)
    with pytest.raises(ValueError, match="do not fit the network that they describe"):
        import_thuml({**weights, "decoder.norm.layernorm.bias": torch.zeros(5)}, **SIZES)

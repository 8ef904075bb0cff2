"""Tune mode trains as evaluation mode does, with less kept, and leaves the model what it was."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flambeau.deployment.rewriting import eval_mode, tune_mode
from flambeau.deployment.rewriting.tune_mode import tuned
from flambeau.models.vision import ResNet
from flambeau.nn import conv_bn_tune, freeze_statistics
from flambeau.ops.saved_tensors import SavedTensors


def network(dtype=torch.float64, seed=0, widths=(4, 8), in_channels=1):
    """A small ResNet with statistics of some data, so that the normalisations do something."""
    torch.manual_seed(seed)
    model = ResNet((1,) * len(widths), widths, in_channels=in_channels, classes=3, stem="small").to(dtype)
    for _ in range(3):
        model(3 * torch.randn(16, in_channels, 8, 8, dtype=dtype) + 1)
    return model.eval()


def data(dtype=torch.float64, seed=1, rows=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (rows,), generator=generator)


def gradients(model, x, y):
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(a, b, tolerance=1e-10):
    assert a[1].keys() == b[1].keys()
    assert abs(a[0] - b[0]) < tolerance
    assert all((a[1][name] - b[1][name]).abs().max() < tolerance for name in a[1])


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), lambda p: torch.optim.Adam(p, lr=3e-3)]
)
def test_fifty_steps_are_those_of_evaluation_mode(optimizer):
    plain = network()
    merged = copy.deepcopy(plain)
    assert tune_mode(merged).n_pairs == 6
    for model in (plain, merged):
        optimiser = optimizer(model.parameters())
        for step in range(50):
            optimiser.zero_grad()
            F.cross_entropy(model(data(seed=step)[0]), data(seed=step)[1]).backward()
            optimiser.step()
    start, moved = dict(network().named_parameters()), dict(merged.named_parameters())
    assert max((moved[name] - start[name]).abs().max() for name in start) > 0.05
    assert max((a - b).abs().max() for a, b in zip(plain.parameters(), merged.parameters())) < 1e-8


def test_a_step_of_the_fused_weight_is_c_squared_times_that_of_deploy_mode():
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 4, 3, bias=False).double(), nn.BatchNorm2d(4).double().eval()
    bn.running_var.copy_(torch.tensor([0.01, 0.5, 4.0, 50.0]))
    scale = (bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach().view(-1, 1, 1, 1)
    x, rate = torch.randn(2, 3, 6, 6, dtype=torch.float64), 0.1
    (gradient,) = torch.autograd.grad(conv_bn_tune(x, conv, bn).square().sum(), [conv.weight])
    tune_step = scale * (conv.weight - rate * gradient) - scale * conv.weight
    fused = (scale * conv.weight).detach().requires_grad_()
    bias = (bn.bias - scale.flatten() * bn.running_mean).detach()
    (gradient,) = torch.autograd.grad(F.conv2d(x, fused, bias).square().sum(), [fused])
    deploy_step = -rate * gradient
    assert (tune_step - scale**2 * deploy_step).abs().max() < 1e-12 * deploy_step.abs().max()
    assert scale.max() / scale.min() > 50


def test_exactly_the_normalisations_inputs_are_no_longer_kept():
    torch.manual_seed(0)
    blocks, channels, x = 8, 16, torch.randn(16, 3, 32, 32)
    layers = [
        layer
        for number in range(blocks)
        for layer in (
            nn.Conv2d(3 if number == 0 else channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
    ]
    model = nn.Sequential(*layers).eval()

    def kept():
        with SavedTensors(exclude=[*model.parameters(), *model.buffers(), x]) as saved:
            model(x).sum()
        return saved

    plain, weights = kept(), sum(p.numel() for p in model.parameters()) * 4
    tune_mode(model)
    merged = kept()
    one_map = 16 * channels * 32 * 32 * 4
    assert plain.bytes - blocks * one_map <= merged.bytes <= plain.bytes - blocks * one_map + 2 * weights
    assert sum(shape == (16, channels, 32, 32) for shape, _ in merged.shapes) == blocks
    assert 0.5 <= merged.bytes / plain.bytes <= 0.62


def test_state_modes_and_names_stay():
    model, (x, y) = network(), data()
    classes, before = [type(m) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    expected = gradients(model, x, y)
    report = tune_mode(model)
    again = tune_mode(model)
    assert report == again and report.n_pairs == 6 and report.skipped == []
    close(gradients(model, x, y), expected)
    state = model.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[name], before[name]) for name in state)
    assert [type(m) for m in model.modules()] == classes and [name for name, _ in model.named_parameters()] == names
    eval_mode(model)
    assert not any({"forward", "train"} & set(vars(module)) for module in model.modules())
    eval_mode(model)
    assert torch.equal(model(x), network()(x))


def test_modes_can_be_toggled_and_new_weights_and_statistics_are_honoured():
    """A fusion that remembers old weights answers with them after training (pytorch issue 108863)."""
    plain, (x, _) = network(), data()
    model = copy.deepcopy(plain)
    tune_mode(model)
    for _ in range(2):
        for one in (plain, model):
            one.train()
            one(2 * x + 1)
            one.eval()
            with torch.no_grad():
                for parameter in one.parameters():
                    parameter.mul_(1.1)
        assert torch.equal(plain.bn1.running_mean, model.bn1.running_mean)
        assert (plain(x) - model(x)).abs().max() < 1e-10
    assert plain.bn1.num_batches_tracked == 5
    model.load_state_dict(network(seed=5).state_dict())
    assert (model(x) - network(seed=5)(x)).abs().max() < 1e-10


def test_a_single_layer_in_training_mode_runs_as_usual():
    plain, (x, y) = network(), data()
    model = copy.deepcopy(plain)
    plain.layer1[0].bn1.train(), model.layer1[0].bn1.train()
    with pytest.warns(UserWarning, match="1 of 6 normalisations are in training mode .*: layer1.0.bn1"):
        tune_mode(model)
    close(gradients(model, x, y), gradients(plain, x, y))
    model.bn1.track_running_stats = plain.bn1.track_running_stats = False
    close(gradients(model, x, y), gradients(plain, x, y))
    assert model.layer1[0].bn1.num_batches_tracked == plain.layer1[0].bn1.num_batches_tracked == 5


@pytest.mark.parametrize("frozen", ["conv1.weight", "bn1.weight", "bn", "conv", "layer1"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(frozen):
    plain, (x, y) = network(), data()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(frozen not in name)
    model = copy.deepcopy(plain)
    tune_mode(model)
    close(gradients(model, x, y), gradients(plain, x, y))


def test_a_hook_registered_later_sees_what_it_would_see():
    plain, (x, _) = network(), data()
    model, seen = copy.deepcopy(plain), []
    tune_mode(model)
    for one in (plain, model):
        one.layer1[0].conv1.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        one(x)
    assert (seen[0] - seen[1]).abs().max() < 1e-10


def test_inputs_whose_channels_are_elsewhere_are_not_merged():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double().eval()
    model[1].running_mean.normal_(), model[1].running_var.uniform_(0.5, 2)
    sequence, rows = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = model(sequence), model(rows)  # over a sequence the second axis, of length 6, is normalised
    tune_mode(model)
    assert torch.equal(model(sequence), expected[0]) and (model(rows) - expected[1]).abs().max() < 1e-12


def test_enabled_within_a_block():
    model, (x, _) = network(), data()
    with tune_mode.enabled(model) as report:
        assert report.n_pairs == 6 and tuned(model.conv1, model.bn1)
        model(x).sum().backward()
    assert not tuned(model.conv1, model.bn1)
    tune_mode(model, include=["conv1"])
    with tune_mode.enabled(model, exclude=["conv1"]) as report:
        assert report.n_pairs == 5 and not tuned(model.conv1, model.bn1)
    assert tuned(model.conv1, model.bn1) and not tuned(model.layer1[0].conv1, model.layer1[0].bn1)
    with pytest.raises(RuntimeError), tune_mode.enabled(model):
        raise RuntimeError
    assert not tuned(model.layer1[0].conv1, model.layer1[0].bn1)


def test_copies_and_pickles_are_independent():
    model, (x, y) = network(), data()
    tune_mode(model)
    expected = gradients(model, x, y)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in (copied, pickled, loaded):
        assert tuned(other.conv1, other.bn1)
        close(gradients(other, x, y), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_a_block_and_between_convolution_and_normalisation(reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ).double()
    model.eval()
    model[1].running_var.fill_(4), model[4].running_mean.fill_(1)
    x = data()[0].requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    tune_mode(model)
    for cut in (2, 1):
        y = checkpoint(model[cut:], checkpoint(model[:cut], x, use_reentrant=reentrant), use_reentrant=reentrant)
        model.zero_grad()
        x.grad = None
        y.square().sum().backward()
        for got, wanted in zip([x, *model.parameters()], expected):
            assert (got.grad - wanted).abs().max() < 1e-10


def test_autocast_gives_half_outputs_and_close_values():
    plain, (x, _) = network(torch.float32, widths=(16, 32)), data(torch.float32)
    model = copy.deepcopy(plain)
    for precision in ("input", "fp32"):
        tune_mode(model, precision=precision)
        with torch.autocast("cpu", torch.bfloat16):
            a, b = model(x), plain(x)
            assert model.bn1(model.conv1(x)).dtype == torch.bfloat16
        assert a.dtype == b.dtype == torch.bfloat16
        exact = plain(x)
        assert (a - exact).abs().max() < 2 * (b - exact).abs().max() + 1e-2
        a.float().sum().backward()
        assert model.conv1.weight.grad.dtype == torch.float32


def test_functional_transforms_and_second_derivatives():
    plain, (x, y) = network(), data()
    model = copy.deepcopy(plain)
    tune_mode(model)

    def sample_loss(one):
        def loss(parameters, x, y):
            return F.cross_entropy(torch.func.functional_call(one, parameters, (x[None],)), y[None])

        return loss

    for name, got in per_sample(sample_loss(model), model, x, y).items():
        assert (got - per_sample(sample_loss(plain), plain, x, y)[name]).abs().max() < 1e-10
    penalties = []
    for one in (plain, model):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(one(leaf), y), [leaf], create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), list(one.conv1.parameters())))
    assert (penalties[0][0] - penalties[1][0]).abs().max() < 1e-10 < penalties[0][0].abs().max()
    ensemble = [copy.deepcopy(model), copy.deepcopy(model)]
    stacked = torch.func.stack_module_state(ensemble)
    out = torch.func.vmap(lambda p, b: torch.func.functional_call(model, (p, b), (x,)))(*stacked)
    assert (out - plain(x)).abs().max() < 1e-10


def per_sample(loss, model, x, y):
    gradient = torch.func.grad(loss)
    return torch.func.vmap(gradient, in_dims=(None, 0, 0))(dict(model.named_parameters()), x, y)


def test_export_and_compile_see_one_convolution_a_pair():
    plain, (x, _) = network(), data()
    model = copy.deepcopy(plain)
    tune_mode(model)
    program = torch.export.export(model, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("conv2d" in target for target in targets) == 6 and not any("batch_norm" in target for target in targets)
    assert (program.module()(x) - plain(x)).abs().max() < 1e-10
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert (compiled(x) - plain(x)).abs().max() < 1e-10
    for one in (plain, model):
        one.train()
    assert (compiled(x) - plain(x)).abs().max() < 1e-10 and model.bn1.num_batches_tracked == 4
    for one in (plain, model):
        one.eval()
    assert (compiled(x) - plain(x)).abs().max() < 1e-10


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        plain, (x, y) = network(), data()
        model = copy.deepcopy(plain)
        tune_mode(model)
        freeze_statistics(model)
        wrapped = nn.parallel.DistributedDataParallel(model.train())
        F.cross_entropy(wrapped(x), y).backward()
        close(
            (torch.tensor(0.0), gradients(plain, x, y)[1]),
            (torch.tensor(0.0), {n: p.grad for n, p in model.named_parameters()}),
        )
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf: pip install 'flambeau[hf]'")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config).eval()
    x = torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(model)
    with pytest.raises(ValueError, match="example_inputs"):
        tune_mode(model)
    report = tune_mode(model, {"pixel_values": x})
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert report.n_pairs == norms > 4 and report.skipped == []
    got, expected = model(x, labels=torch.tensor([0, 1])), plain(x, labels=torch.tensor([0, 1]))
    assert (got.logits - expected.logits).abs().max() < 1e-5
    got.loss.backward(), expected.loss.backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_bad_use():
    model = network()
    with pytest.raises(ValueError, match="precision must be 'input' or 'fp32', got 'half'"):
        tune_mode(model, precision="half")
    with pytest.raises(ValueError, match="backend must be 'eager' or 'inductor', got 'nvfuser'"):
        tune_mode(model, backend="nvfuser")
    with pytest.raises(ValueError, match="backend='inductor' merges every pair"):
        tune_mode(model, backend="inductor", include=["conv1"])
    with pytest.raises(ValueError, match="no pair of a convolution and a batch normalisation in Linear"):
        tune_mode(nn.Linear(2, 2))
    tune_mode(model)
    with pytest.raises(ValueError, match="no pair"):
        tune_mode(model, include=["nothing"])
    assert tuned(model.conv1, model.bn1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tune_mode(model)

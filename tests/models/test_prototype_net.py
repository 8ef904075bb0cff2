import pytest
import torch
from torch import nn

from flambeau.models.prototype_net import PrototypeNet, latent_spread
from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder
from flambeau.models.vision.autoencoder import ConvDecoder, ConvEncoder
from flambeau.nn.distances import squared_distances


def image_net(size=8, channels=(4, 3), num_prototypes=6, num_classes=3, **options):
    shape = (1, size, size)
    return PrototypeNet(
        ConvEncoder(shape, channels), ConvDecoder(shape, channels), num_classes, num_prototypes, **options
    )


def table_net(features=5, **options):
    return PrototypeNet(MLPEncoder(features, (7,), 4), MLPDecoder(features, (7,), 4), 3, 6, **options)


def test_output_and_that_logits_depend_on_distances_only():
    torch.manual_seed(0)
    net = table_net()
    output = net(torch.randn(4, 5))
    assert [tuple(t.shape) for t in output] == [(4, 3), (4, 6), (4, 4), (4, 5)]
    # Two codes mirrored about a flat set of prototypes are different and equally far from each of them.
    with torch.no_grad():
        net.prototypes[:, -1] = 0
    z = torch.randn(1, 4)
    mirrored = z * torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert not torch.equal(z, mirrored)
    assert torch.equal(net.head(net.prototype_layer(z)), net.head(net.prototype_layer(mirrored)))


@pytest.mark.parametrize("changed", ["prune", "merge", "swapped"])
def test_exact_duplicates_can_be_removed_without_changing_logits(changed):
    torch.manual_seed(1)
    net, x = table_net(), torch.randn(20, 5)
    with torch.no_grad():
        net.prototypes[4] = net.prototypes[1]
    before = net.classify(x)[0].detach()
    if changed == "prune":
        net.prune(4)
    else:
        net.merge(*((1, 4) if changed == "merge" else (4, 1)))
    assert len(net.prototypes) == len(net.head.weight) == len(net.training_index) == 5
    torch.testing.assert_close(net.classify(x)[0].detach(), before, rtol=1e-6, atol=1e-5)


def test_pruning_takes_away_exactly_its_contribution():
    torch.manual_seed(1)
    net, x = table_net(), torch.randn(20, 5)
    logits, distances = net.classify(x)
    expected = (logits - distances[:, 2:3] * net.head.weight[2]).detach()
    net.prune(2)
    torch.testing.assert_close(net.classify(x)[0].detach(), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(net.prototypes, nn.Parameter) and net.prototypes.requires_grad


def test_push_lands_on_training_codes_and_notes_which():
    torch.manual_seed(2)
    net, x = image_net(), torch.rand(30, 1, 8, 8)
    index = net.push(net.encode_all(x))
    assert torch.equal(net.training_index, index)
    torch.testing.assert_close(net.prototypes.detach(), net.encode_all(x)[index])


@pytest.mark.parametrize("mode", ["free", "fixed_class"])
def test_prototypes_start_on_encoded_data_of_their_classes(mode):
    torch.manual_seed(3)
    net = PrototypeNet(nn.Identity(), nn.Identity(), 3, 6, latent_dim=2, w_mode=mode)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.arange(60) % 3
    codes = centres[labels] + 0.1 * torch.randn(60, 2)
    net.start_prototypes(codes, labels, generator=torch.Generator().manual_seed(0))
    of_prototype = squared_distances(net.prototypes, centres).min(1)
    assert of_prototype.values.max() < 0.2
    assert torch.equal(net.head.favoured_class, of_prototype.indices)
    assert set(of_prototype.indices.tolist()) == {0, 1, 2}
    assert (net.training_index >= 0).all()


def test_frozen_encoder_stays_as_it_is():
    torch.manual_seed(4)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net = PrototypeNet(encoder, nn.Linear(4, 5), 3, 6, latent_dim=4, freeze_encoder=True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    net.train()
    output = net(torch.randn(8, 5))
    (output.logits.square().mean() + output.recon.square().mean()).backward()
    assert not output.z.requires_grad
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in net.decoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_hugging_face_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    decoder = nn.Sequential(nn.Linear(16, 3 * 8 * 8), nn.Unflatten(1, (3, 8, 8)), nn.Sigmoid())
    net = PrototypeNet(transformers.ViTModel(config), decoder, 3, 6, latent_dim=16, freeze_encoder=True)
    output = net(torch.rand(2, 3, 8, 8))
    assert output.z.shape == (2, 16) and output.recon.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("mode", ["free", "fixed_class"])
def test_saved_and_loaded_is_the_same_net(tmp_path, mode):
    torch.manual_seed(5)
    net, x = image_net(w_mode=mode, memory=7), torch.rand(12, 1, 8, 8)
    net.push(net.encode_all(x))
    net.merge(0, 5)
    net.save(tmp_path / "net.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    shape = (1, 8, 8)
    loaded = PrototypeNet.load(tmp_path / "net.safetensors", ConvEncoder(shape, (4, 3)), ConvDecoder(shape, (4, 3)))
    assert all(torch.equal(a, b) for a, b in zip(net(x), loaded(x)))
    assert torch.equal(loaded.training_index, net.training_index) and loaded.head.mode == mode


def test_load_refuses_other_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="PrototypeNet.save"):
        PrototypeNet.load(tmp_path / "other.safetensors", nn.Identity(), nn.Identity())
    image_net().save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        PrototypeNet.load(tmp_path / "net.safetensors", MLPEncoder(5), MLPDecoder(5))


def test_memory_holds_the_newest_codes():
    net = PrototypeNet(nn.Identity(), nn.Identity(), 2, 2, latent_dim=1, memory=5)
    for start in (0, 3, 6):
        net.memorise(torch.arange(start, start + 3, dtype=torch.float32).unsqueeze(1))
        held = sorted(net.remembered(5)[:, 0].tolist())
        assert held == [float(v) for v in range(max(0, start - 2), start + 3)]
    assert sorted(net.remembered(2)[:, 0].tolist()) == [7.0, 8.0]


def test_latent_spread_is_the_mean_over_pairs():
    codes = torch.randn(40, 3, dtype=torch.float64)
    assert latent_spread(codes) == pytest.approx(float(squared_distances(codes, codes).sum() / (40 * 39)))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "expected floating point"),
        (torch.full((2, 1, 8, 8), float("nan")), ValueError, "NaN"),
        (torch.full((2, 1, 8, 8), float("inf")), ValueError, "infinity"),
        (torch.full((2, 1, 8, 8), 1.5), ValueError, r"expected \[0, 1\]"),
        (torch.full((2, 1, 8, 8), -0.5), ValueError, r"expected \[0, 1\]"),
        (torch.zeros(2, 1, 9, 8), ValueError, "expected \\(1, 8, 8\\)"),
    ],
)
def test_bad_inputs(x, error, message):
    with pytest.raises(error, match=message):
        image_net()(x)


def test_bad_parts():
    with pytest.raises(ValueError, match="latent_dim"):
        PrototypeNet(nn.Linear(5, 4), nn.Linear(4, 5), 3)
    wrong = PrototypeNet(nn.Linear(5, 4), nn.Linear(4, 6), 3, latent_dim=4)
    with pytest.raises(ValueError, match=r"decoder: got an output of shape \(2, 6\), expected \(2, 5\)"):
        wrong(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="num_prototypes: got 2 for 3"):
        image_net(num_prototypes=2, w_mode="fixed_class")
    with pytest.raises(ValueError, match="memory"):
        image_net(memory=-1)
    for call in (lambda n: n.prune(6), lambda n: n.prune(-1), lambda n: n.merge(0, 0), lambda n: n.merge(0, 9)):
        with pytest.raises(ValueError, match="got"):
            call(table_net())

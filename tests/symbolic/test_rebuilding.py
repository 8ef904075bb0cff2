"""Building a changed network with the weights of the old one."""

import pytest
import torch
from torch import nn

from flambeau.symbolic import Insert, SymbolicError, rebuild, symbolize

Linear, Conv, Norm, Relu, Sequential, Flatten = map(
    symbolize, (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Sequential, nn.Flatten)
)


def built(node):
    torch.manual_seed(0)
    module = node.build()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.eval()


def test_unchanged_parts_keep_their_weights_and_others_start_afresh():
    old = Sequential(Linear(4, 8), Relu(), Linear(8, 3))
    module = built(old)
    new = old.clone().rebind({"[2].out_features": 5})
    grown = rebuild(module, old, new)
    assert torch.equal(grown[0].weight, module[0].weight) and grown[2].weight.shape == (5, 8)
    assert grown[0].weight.data_ptr() != module[0].weight.data_ptr() and not grown.training
    again = rebuild(module, old, old.clone())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), module.state_dict().values()))


def test_net2net_widens_without_changing_the_function():
    old = Sequential(Linear(4, 8), Relu(), Linear(8, 6), Relu(), Linear(6, 3))
    module = built(old)
    new = old.clone().rebind({"[0].out_features": 13, "[2].in_features": 13})
    new.rebind({"[2].out_features": 18, "[4].in_features": 18})
    x = torch.randn(5, 4)
    torch.testing.assert_close(rebuild(module, old, new, inherit="net2net")(x), module(x), atol=1e-5, rtol=1e-5)


def test_net2net_widens_convolutions_with_batch_norm_kernels_and_flattening():
    old = Sequential(Conv(3, 4, 3, padding=1), Norm(4), Relu(), Conv(4, 5, 3, padding=1), Flatten(), Linear(5 * 36, 2))
    module = built(old)
    module.train()(torch.randn(8, 3, 6, 6))
    module.eval()
    new = old.clone().rebind({
        "[0].out_channels": 7, "[0].kernel_size": 5, "[0].padding": 2, "[1].num_features": 7, "[3].in_channels": 7,
        "[3].out_channels": 9, "[5].in_features": 9 * 36,
    })  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    grown = rebuild(module, old, new, inherit="net2net")
    torch.testing.assert_close(grown(x), module(x), atol=1e-5, rtol=1e-4)
    assert grown[1].num_batches_tracked == module[1].num_batches_tracked


def test_net2net_deepens_with_identities():
    class Net(nn.Module):
        def __init__(self, deeper: bool = False):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.inserted = nn.Linear(8, 8) if deeper else None
            self.mixer = nn.Conv1d(8, 8, 3, padding=1) if deeper else None

        def forward(self, x):
            x = self.first(x).relu()
            if self.inserted is not None:
                x = self.mixer(self.inserted(x).relu()[..., None])[..., 0].relu()
            return self.last(x)

    old = symbolize(Net)()
    module = built(old)
    x = torch.randn(5, 4)
    grown = rebuild(module, old, old.clone().rebind(deeper=True), inherit="net2net")
    torch.testing.assert_close(grown(x), module(x))


def test_dtype_is_kept_and_shrinking_starts_afresh():
    old = Sequential(Linear(4, 8), Relu(), Linear(8, 3))
    module = built(old).double()
    new = old.clone().rebind({"[0].out_features": 2, "[2].in_features": 2})
    grown = rebuild(module, old, new, inherit="net2net")
    assert grown[0].weight.dtype == torch.float64 and grown(torch.randn(1, 4).double()).shape == (1, 3)
    appended = rebuild(module, old, old.clone().rebind({"args[3]": Insert(Relu())}))
    assert len(appended) == 4 and torch.equal(appended[2].weight, module[2].weight)


def test_what_does_not_fit_is_refused():
    old = Sequential(Linear(4, 8))
    module = built(old)
    with pytest.raises(SymbolicError, match="module: expected the Linear"):
        rebuild(module, Linear(4, 8), Linear(4, 9))
    with pytest.raises(SymbolicError, match="new: expected a node that builds a module"):
        rebuild(module, old, symbolize(three)())
    with pytest.raises(ValueError, match="inherit"):
        rebuild(module, old, old.clone(), inherit="all")


def three():
    return 3

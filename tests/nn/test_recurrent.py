import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from flambeau.nn.recurrent import FlashGRU, FlashLSTM, FlashRNN
from flambeau.ops.flashrnn import expression_cell

TORCH = {FlashLSTM: nn.LSTM, FlashGRU: nn.GRU}


def assert_same(ours, theirs, tolerance):
    for a, b in zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs)):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("ours", TORCH)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_drop_in_equals_torch(ours, bidirectional, dtype, tolerance):
    torch.manual_seed(0)
    module = TORCH[ours](5, 7, num_layers=2, bidirectional=bidirectional).to(dtype)
    network = ours.from_torch(module)
    for time, batch in [(1, 3), (11, 1), (300, 3)]:
        x = torch.randn(time, batch, 5, dtype=dtype)
        assert_same(network(x), module(x), tolerance)
    state = torch.randn(4 if bidirectional else 2, 3, 7, dtype=dtype)
    hx = (state, state.flip(0)) if ours is FlashLSTM else state
    inputs = [torch.randn(9, 3, 5, dtype=dtype).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0])
    results = network(inputs[0], hx), module(inputs[1], hx)
    assert_same(*results, tolerance)
    for output, _ in results:
        output.square().sum().backward()
    assert_same(inputs[0].grad, inputs[1].grad, 10 * tolerance)
    torch.testing.assert_close(
        network.network.layers[0].projection.weight.grad, module.weight_ih_l0.grad, atol=1e-4, rtol=1e-4
    )


def test_packed_sequences_equal_torch():
    torch.manual_seed(0)
    module = nn.LSTM(4, 6, batch_first=True, bidirectional=True, num_layers=2)
    network = FlashLSTM.from_torch(module)
    packed = pack_padded_sequence(torch.randn(3, 8, 4), [5, 8, 1], batch_first=True, enforce_sorted=False)
    (ours, our_state), (theirs, their_state) = network(packed), module(packed)
    assert_same(pad_packed_sequence(ours, batch_first=True), pad_packed_sequence(theirs, batch_first=True), 1e-5)
    assert_same(our_state, their_state, 1e-5)


@pytest.mark.parametrize("cell", ["lstm", "slstm", "gru", "elman"])
def test_streaming_equals_the_whole_sequence(cell):
    torch.manual_seed(0)
    network = FlashRNN(3, 8, num_heads=2, cell=cell, num_layers=2)
    x = torch.randn(2, 6, 3)
    whole, last = network(x)
    states, outputs = None, []
    for t in range(6):
        output, states = network.step(x[:, t], states)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, atol=1e-6, rtol=1e-6)
    assert_same(states, last, 1e-6)


def test_lengths_ignore_padding_and_reach_no_gradient():
    torch.manual_seed(0)
    network = FlashRNN(3, 8, cell="slstm", bidirectional=True)
    x = torch.randn(2, 6, 3)
    lengths = torch.tensor([4, 6])
    outputs, _ = network(x, lengths=lengths)
    alone, _ = network(x[:1, :4])
    torch.testing.assert_close(outputs[:1, :4], alone)
    assert not outputs[0, 4:].any()
    x[0, 4:] = torch.nan
    x.requires_grad_()
    network(x, lengths=lengths)[0].sum().backward()
    assert torch.isfinite(x.grad[0, :4]).all()
    assert all(torch.isfinite(p.grad).all() for name, p in network.named_parameters() if "projection" not in name)


def test_options_layers_and_dropout():
    torch.manual_seed(0)
    network = FlashRNN(3, 8, num_layers=2, dropout=0.5, batch_first=False, forward_clipval=0.1)
    x = torch.randn(5, 2, 3)
    assert network(x)[0].abs().max() <= 0.1
    assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x)[0].dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_heads 4"):
        FlashRNN(3, 10, num_heads=4)
    with pytest.raises(ValueError, match="cell is 'mlp'"):
        FlashRNN(3, 8, cell="mlp")
    with pytest.raises(ValueError, match="num_layers is 0"):
        FlashRNN(3, 8, num_layers=0)
    network = FlashRNN(3, 8, bidirectional=True)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 4\)"):
        network(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match="needs the future"):
        network.step(torch.randn(2, 3))
    with pytest.raises(ValueError, match="states holds 1"):
        network(torch.randn(2, 5, 3), [torch.zeros(2, 2, 1, 1, 8)])
    with pytest.raises(ValueError, match="proj_size 2"):
        FlashLSTM.from_torch(nn.LSTM(3, 8, proj_size=2))


def test_a_cell_of_ones_own_is_a_layer():
    ours = expression_cell("f = sigmoid(f); h = f * h + (1 - f) * tanh(z)", gates="f z", states="h")
    torch.manual_seed(0)
    network = FlashRNN(5, 8, num_heads=2, cell=ours, num_layers=2)
    x = torch.randn(3, 7, 5)
    outputs, states = network(x)
    assert outputs.shape == (3, 7, 8) and len(states) == 2
    reference = FlashRNN(5, 8, num_heads=2, cell=ours, num_layers=2, backend="reference")
    reference.load_state_dict(network.state_dict())
    assert_same(outputs, reference(x)[0], 1e-5)
    outputs.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())

"""Recorded tensors are those of a forward pass taken apart by hand, and nothing stays on the model."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn

from flambeau.models.vision import cifar_resnet
from flambeau.training.distillation import ForwardHookManager, PathLoss, hooks


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def resnet_and_input():
    torch.manual_seed(0)
    model = cifar_resnet(20, classes=10).eval()
    return model, torch.randn(2, 3, 16, 16)


def by_hand(model, x):
    stem = model.relu(model.bn1(model.conv1(x)))
    first = model.layer1(model.maxpool(stem) if hasattr(model, "maxpool") else stem)
    return first, model.layer2(first)


def test_recorded_tensors_are_those_of_a_split_forward_bitwise():
    model, x = resnet_and_input()
    first, second = by_hand(model, x)
    manager = ForwardHookManager("cpu")
    manager.add_hook(model, "layer2", requires_input=True, requires_output=True)
    manager.add_hook(model, "layer1", requires_input=False)
    manager.add_hook(model, "layer1.0.conv1", requires_output=False)
    manager.add_hook(model, ".", requires_input=True)
    output = model(x)
    io = manager.pop_io_dict()
    assert torch.equal(io["layer2"]["input"], first) and torch.equal(io["layer2"]["output"], second)
    assert torch.equal(io["layer1"]["output"], first) and "input" not in io["layer1"]
    assert set(io["layer1.0.conv1"]) == {"input"}
    assert io["."]["output"] is output and io["."]["input"] is x
    assert manager.pop_io_dict() == {}
    assert hook_count(model) == 6
    manager.close()
    assert hook_count(model) == 0


def test_context_records_and_leaves_no_hook_even_after_an_error():
    model, x = resnet_and_input()
    first, second = by_hand(model, x)
    with hooks(model, ["layer1", "layer2"]) as io:
        model(x)
        assert torch.equal(io["layer1"]["output"], first) and "layer2" in io
        model(2 * x)
        assert not torch.equal(io["layer1"]["output"], first)
        model(x)
    assert torch.equal(io["layer2"]["output"], second) and hook_count(model) == 0
    with pytest.raises(RuntimeError, match="stop"), hooks(model, ["layer1"]):
        raise RuntimeError("stop")
    assert hook_count(model) == 0


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.shared = nn.Linear(4, 4)
        self.pair = Pair()
        self.named = Named()

    def forward(self, x):
        for block in self.blocks:
            x = self.shared(block(x))
        low, high = self.pair(x)
        return self.named(low=low, high=high)


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


class Named(nn.Module):
    def forward(self, low, high):
        return {"low": low, "sum": low + high}


def test_list_entries_tuples_dicts_and_keyword_arguments():
    model, x = Blocks(), torch.randn(2, 4)
    with hooks(model, ["blocks.1", "pair", "named", "shared"]) as io:
        output = model(x)
    expected = model.blocks[1](model.shared(model.blocks[0](x)))
    assert torch.equal(io["blocks.1"]["output"], expected)
    assert isinstance(io["pair"]["output"], tuple) and torch.equal(io["pair"]["output"][1], 2 * io["pair"]["output"][0])
    assert set(io["named"]["input"]) == {"low", "high"} and io["named"]["output"]["sum"] is output["sum"]
    assert torch.equal(io["shared"]["output"], io["pair"]["input"])  # the last of three calls


def test_repeated_calls_accumulate_and_stack():
    model, x = Blocks(), torch.randn(2, 4)
    manager = ForwardHookManager()
    manager.add_hook(model, "shared", accumulates=True)
    manager.add_hook(model.shared, ".", accumulates=True, stacks_accumulated=True, requires_input=False)
    model(x)
    model(x)
    io = manager.pop_io_dict()
    assert len(io["shared"]["output"]) == len(io["shared"]["input"]) == 6
    assert torch.equal(torch.stack(io["shared"]["output"]), io["."]["output"])
    model.shared(x), model.shared(torch.randn(3, 4))
    with pytest.raises(ValueError, match="cannot be stacked"):
        manager.pop_io_dict()
    manager.close()
    with pytest.raises(ValueError, match="needs accumulates"):
        manager.add_hook(model, "shared", stacks_accumulated=True)
    with pytest.raises(ValueError, match="requires_input or requires_output"):
        manager.add_hook(model, "shared", False, False)


def test_outputs_of_transformers_are_recorded_as_they_are():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    tokens = torch.randint(30, (2, 5))
    with hooks(model, ["encoder", "encoder.layer.1", "."]) as io:
        output = model(input_ids=tokens, output_hidden_states=True)
    assert io["encoder"]["output"].last_hidden_state is output.last_hidden_state
    assert io["."]["output"].pooler_output is output.pooler_output
    last = io["encoder.layer.1"]["output"]
    assert torch.equal(last if isinstance(last, torch.Tensor) else last[0], output.hidden_states[2])
    assert torch.equal(io["."]["input"]["input_ids"], tokens)


def test_a_compiled_model_is_recorded_whenever_it_is_hooked():
    model, x = resnet_and_input()
    expected = by_hand(model, x)[0]
    compiled = torch.compile(model, backend="eager")
    compiled(x)  # a graph without hooks exists
    for _ in range(2):
        with hooks(compiled, ["layer1"]) as io:
            compiled(x)
        torch.testing.assert_close(io["layer1"]["output"], expected)
    with hooks(compiled, ["layer1"]) as io:
        pass
    compiled(x)
    assert len(io) == 0 and hook_count(model) == 0


def test_a_copied_model_records_into_the_copied_manager():
    model, x = Blocks(), torch.randn(2, 4)
    manager = ForwardHookManager()
    manager.add_hook(model, "shared")
    other, other_manager = copy.deepcopy((model, manager))
    other(x)
    assert manager.pop_io_dict() == {} and "shared" in other_manager.pop_io_dict()
    other_manager.close()
    assert hook_count(other) == 0 and hook_count(model) == 2


def test_a_tensor_that_is_changed_in_place_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0: its output was changed in place"), hooks(model, ["0"]):
        model(torch.randn(2, 4))
    with hooks(model, ["1"]) as io:
        model(torch.randn(2, 4))
        assert (io["1"]["output"] >= 0).all() and "input" not in io["1"]
    manager = ForwardHookManager()
    manager.add_hook(model, "1", requires_output=False)
    model(torch.randn(2, 4))
    with pytest.raises(ValueError, match="1: its input was changed in place"):
        manager.pop_io_dict()
    manager.close()
    assert hook_count(model) == 0


def test_unknown_and_repeated_paths_are_named():
    model, _ = resnet_and_input()
    manager = ForwardHookManager()
    with pytest.raises(ValueError, match="no module 'layr2'; the nearest paths are .*layer2"):
        manager.add_hook(model, "layr2")
    manager.add_hook(model, "layer2")
    with pytest.raises(ValueError, match="layer2 is recorded already"):
        manager.add_hook(model, "layer2")
    manager.close()


def test_a_path_that_did_not_run_is_named_by_the_loss():
    loss = PathLoss(nn.MSELoss(), "layer3:output", "layer3:input")
    with pytest.raises(ValueError, match="output of the student's module 'layer3' was not recorded.*layer1"):
        loss({"layer1": {"output": torch.ones(1)}}, {"layer3": {"input": torch.ones(1)}})

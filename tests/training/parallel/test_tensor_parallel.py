"""Layers split over processes compute what one process computes, and say what they exchange."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import load

sys.path.insert(0, str(Path(__file__).parent))
import parallel_workers as workers

from flambeau.models.language import GPT
from flambeau.training.parallel import Rule
from flambeau.training.parallel.cost import (
    V100_DGX2H,
    HardwareSpec,
    TransformerSize,
    all_reduce_seconds,
    all_to_all_seconds,
    gather_seconds,
    measured_cpu,
    tensor_parallel_step,
)
from flambeau.training.parallel.memory import memory_per_rank
from flambeau.training.parallel.parity import parity_table
from flambeau.training.parallel.tensor_parallel import apply_tensor_parallel, whole
from flambeau.training.parallel.tensor_styles import _heads_from_thirds, thirds_from_heads

WIDTH, TOKENS, DEPTH = 32, 2 * 16, 3


@pytest.fixture(scope="module")
def ranks():
    return workers.two()


@pytest.fixture(scope="module")
def found(ranks):
    return ranks[0]


@pytest.fixture(scope="module")
def found_by_four():
    return workers.four()[0]


@pytest.mark.parametrize("model", ["gpt", "bert"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("placements", ["megatron", "megatron_sp"])
def test_loss_and_gradients_are_those_of_one_process(found, model, norm, placements):
    loss, gradient = found[model][f"{norm} {placements}"]
    assert loss <= 1e-12 and gradient <= 1e-12


def test_four_ranks_and_single_precision(found, found_by_four):
    assert max(found_by_four["gpt"] + found_by_four["sequence"]) <= 1e-12
    assert max(found["fp32"] + found_by_four["fp32"]) <= 1e-5


@pytest.mark.parametrize("model", ["gpt2", "bert", "llama", "llama, one kv head"])
def test_models_of_transformers(found, model):
    if found["transformers"] is None:
        pytest.skip("transformers is not installed")
    assert max(found["transformers"][model]) <= 1e-12


def test_rules_of_ones_own(found):
    assert max(found["own_rules"]) <= 1e-12


@pytest.mark.parametrize("pair", ["copy", "sum", "gather", "take", "gather_summing", "sum_and_take"])
def test_each_collective_is_the_adjoint_of_its_backward(found, pair):
    left, right = found["adjoints"][pair]
    assert abs(left - right) <= 1e-12 * max(1, abs(left)) and left != 0


def test_plain_layers_agree_with_dtensor_and_overlap_changes_nothing(found):
    layers = found["layers"]
    assert layers["loss"] <= 1e-12 and layers["gradient"] <= 1e-12
    assert layers["overlap"] is True
    difference, shapes = layers["sequence"]
    assert difference <= 1e-12
    assert shapes == [[2, 6, 12], [6], [2, 8]]


def test_two_all_reduces_each_way_a_layer_and_three_numbers_a_token(found):
    forward, loss, backward = found["traffic"]["megatron"]
    size = TOKENS * WIDTH * 4
    # Two a layer each way; one more for the embedding forward, one for the head backward.
    assert forward == [{"all_reduce": 2 * DEPTH + 1}, {"all_reduce": (2 * DEPTH + 1) * size}, [2]]
    assert backward == forward
    assert loss == [{"all_reduce": 3}, {"all_reduce": 3 * TOKENS * 4}, [2]]


def test_sequence_parallelism_sends_the_same_bytes_as_gathers_and_reduce_scatters(found):
    forward, loss, backward = found["traffic"]["megatron_sp"]
    calls = 2 * DEPTH + 1
    assert forward[0] == backward[0] == {"reduce_scatter": calls, "all_gather": calls}
    assert forward[1]["all_gather"] == calls * TOKENS * WIDTH * 4
    assert loss[0] == {"all_reduce": 3}


def test_every_kind_of_collective_is_counted_with_its_bytes(found):
    calls, total = found["kinds_of_traffic"]
    size = 4 * 6 * 4
    assert calls == [
        ["all_reduce", size, 2],
        ["all_reduce", size, 2],
        ["all_gather", 2 * size, 2],
        ["all_gather", 2 * size, 2],
        ["reduce_scatter", size, 2],
        ["all_to_all", size, 2],
        ["broadcast", size, 2],
        ["send", size, 2],
        ["recv", size, 2],
    ]
    assert total == 10 * size


def test_copies_stay_equal_for_fifty_steps_and_a_disturbed_one_is_found(found):
    assert len(found["training"]["drift"]) == 15
    assert set(found["training"]["drift"].values()) == {0.0}
    disturbed = {name: value for name, value in found["training"]["disturbed"].items() if value}
    assert list(disturbed) == ["blocks.1.mlp_norm.bias"]
    assert disturbed["blocks.1.mlp_norm.bias"] == pytest.approx(1e-3, rel=1e-3)


def test_sequence_parallel_training_follows_one_process(found):
    assert found["training"]["sequence_parallel_losses"] <= 1e-12


def test_the_clipped_norm_counts_every_number_once(found, found_by_four):
    for norm, expected in (found["clip"], found_by_four["clip"], found_by_four["sharded_clip"]):
        assert norm == pytest.approx(expected, rel=1e-6)


def test_the_slices_of_the_model_join_to_that_of_one_process(found):
    assert found["slices"] is True


def test_memory_is_half_of_what_is_split_and_all_of_the_rest(found):
    rows = {row["class"]: row for row in found["memory"]}
    assert rows["split"]["share"] == 0.5
    # Two layers with two norms and the last one; positions; two biases behind sums a layer.
    assert rows["norms"]["parameters"] == 5 * 2 * 128 and rows["norms"]["share"] == 1
    assert rows["embeddings"]["parameters"] == 64 * 128
    assert rows["biases"]["parameters"] == 2 * 2 * 128
    total = sum(p.numel() for p in GPT(256, 64, 128, 2, 4).parameters())
    assert rows["all"]["parameters"] == rows["split"]["parameters"] + total - 2 * rows["split"]["parameters"]
    assert rows["all"]["optimizer_bytes"] == 8 * rows["all"]["parameters"]
    assert rows["all"]["share"] < 0.56


def test_memory_of_a_model_on_one_process_is_all_of_it():
    model = GPT(16, 8, 8, 1, 2)
    assert memory_per_rank(model)[-1]["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_checkpoint_of_two_ranks_is_read_by_four_and_by_one(found, found_by_four):
    assert len(found["state"]) == 3 * len(dict(workers.gpt().named_parameters()))
    for name, tensor in found["state"].items():
        assert torch.equal(found_by_four["state"][name], tensor), name
    state = {name: torch.empty_like(tensor) for name, tensor in found["state"].items()}
    load(state, checkpoint_id=workers.checkpoint_folder(), no_dist=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in found["state"].items())


def test_generation_with_split_heads_is_that_of_one_process(ranks):
    for rank in ranks:
        assert torch.equal(rank["generation"]["greedy"], rank["generation"]["expected"])


def test_only_the_first_rank_draws_tokens(ranks):
    first, second = (rank["generation"]["sampled"] for rank in ranks)
    assert torch.equal(first, second)


def test_parity_table_tells_rounding_from_errors(found):
    table = found["parity"]
    assert [row["tensor"] for row in table[:2]] == ["loss", "embedding.weight"] and table[1]["placement"] == "S(0)"
    assert all(row["agrees"] for row in table)
    assert 0 < max(row["rounding"] for row in table) < 1e-5


def test_ranks_that_disagree_are_told_before_their_layers_are_split(found):
    (shapes, placements), equal = found["agreement"]
    assert "embedding.weight has shape (53, 32) on rank 0 of the mesh and (54, 32) on 1" in shapes
    assert "rank 1 splits layers over 2 ranks by megatron_sp, rank 0 over 2 by megatron" in placements
    assert equal, "rank 0's values count for what all ranks hold"


# One process that plays rank 0 of eight: what is said before any communication, and eight ranks' arithmetic.


@pytest.fixture
def fake_eight():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield lambda shape=(8,): init_device_mesh("cpu", shape)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("build", "placements", "message"),
    [
        (lambda: GPT(64, 8, 16, 1, 4), "megatron", "heads must be divisible by the 8 ranks, got 4 in blocks.0"),
        (lambda: GPT(64, 8, 16, 1, 8, hidden=20), "megatron", "blocks.0.mlp.up: output features must be divisible by"),
        (lambda: GPT(5, 8, 16, 1, 8), "megatron", "embedding: the vocabulary must have at least 8 tokens"),
        (lambda: GPT(64, 8, 16, 1, 8), (Rule("head", "head"),), "embedding.weight is tied to head.weight"),
        (lambda: GPT(64, 8, 16, 1, 8), (Rule("haed", "head"),), "no module fits the rule 'haed'"),
        (lambda: nn.Linear(8, 8), "megatron", "no placements are known for Linear"),
        (lambda: nn.Sequential(nn.Linear(6, 8)), (Rule("0", "row"),), "0: input features must be divisible"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_said_before_any_communication(fake_eight, build, placements, message):
    with pytest.raises(ValueError, match=message):
        apply_tensor_parallel(build(), fake_eight(), placements)


def test_wrong_kinds_of_module_and_mesh(fake_eight):
    with pytest.raises(TypeError, match="0: style 'column' is for linear layers, got ReLU"):
        apply_tensor_parallel(nn.Sequential(nn.ReLU()), fake_eight(), (Rule("0", "column"),))
    with pytest.raises(TypeError, match="0: style 'vocab' is for embeddings"):
        apply_tensor_parallel(nn.Sequential(nn.Linear(8, 8)), fake_eight(), (Rule("0", "vocab"),))
    with pytest.raises(ValueError, match="mesh must have one axis, got 2"):
        apply_tensor_parallel(GPT(64, 8, 16, 1, 8), fake_eight((2, 4)))


def test_a_length_that_ranks_do_not_divide_and_an_untied_head(fake_eight):
    model = GPT(64, 16, 16, 1, 8)
    apply_tensor_parallel(model, fake_eight(), "megatron_sp")
    with pytest.raises(
        ValueError, match="embedding: sequence parallelism needs a length divisible by the 8 ranks, got 9"
    ):
        model(torch.zeros(1, 9).long())
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=8, bos_token_id=0, eos_token_id=0)
    untied = transformers.GPT2LMHeadModel(config)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match="config.tie_word_embeddings is set, but the output embedding is not tied"):
        apply_tensor_parallel(untied, fake_eight())
    with pytest.raises(ValueError, match="megatron_sp is for GPT and BERT of flambeau"):
        apply_tensor_parallel(transformers.GPT2LMHeadModel(config), fake_eight(), "megatron_sp")


def test_fewer_kv_heads_than_ranks_are_computed_by_all_with_a_warning(fake_eight):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="fewer heads than the 8 ranks"):
        apply_tensor_parallel(transformers.LlamaForCausalLM(config), fake_eight())
    config.num_key_value_heads = 3
    config.num_attention_heads = 24
    config.head_dim = 8
    with pytest.raises(ValueError, match="kv heads and ranks must divide one another, got 3"):
        apply_tensor_parallel(transformers.LlamaForCausalLM(config), fake_eight())


def test_eight_ranks_in_one_process(fake_eight):
    local = pytest.importorskip("torch.distributed._local_tensor", reason="this torch has no LocalTensorMode")
    torch.manual_seed(0)
    alone = GPT(51, 8, 32, 2, 8).double().eval()
    model = copy.deepcopy(alone)
    del model.cross_entropy  # asks each rank for its number, which they do not have here: whole logits instead
    tokens = torch.randint(51, (2, 8))
    expected = alone(tokens)
    expected.square().sum().backward()
    with local.LocalTensorMode(8):
        apply_tensor_parallel(model, fake_eight())
        logits = model(tokens)
        logits.square().sum().backward()
        torch.testing.assert_close(logits.reconcile(), expected, rtol=1e-12, atol=1e-12)
        for (name, parameter), single in zip(model.named_parameters(), alone.parameters(), strict=True):
            gradient = whole(parameter.grad)
            gradient = gradient.reconcile() if isinstance(gradient, local.LocalTensor) else gradient
            torch.testing.assert_close(gradient, single.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_one_rank_is_the_model_itself(fake_eight):
    from torch.distributed.device_mesh import DeviceMesh

    model = workers.gpt(torch.float32)
    table = parity_table(model, workers.gpt_loss, DeviceMesh("cpu", [0]))
    assert max(row["difference"] for row in table) < 1e-6 and all(row["agrees"] for row in table)


def test_thirds_and_heads_are_inverse_orders():
    weight = torch.randn(5, 3 * 4 * 2)
    by_heads = weight[:, _heads_from_thirds(4, 2)]
    assert torch.equal(by_heads[:, :6].view(5, 3, 2)[:, 1], weight.view(5, 3, 4, 2)[:, 1, 0])
    assert torch.equal(thirds_from_heads(by_heads, 4), weight)


def test_ring_costs_and_hand_computed_efficiencies():
    link = V100_DGX2H.link(2)
    assert all_reduce_seconds(1e9, 2, link) == pytest.approx(2 * (0.5 * 1e9 / 100e9 + 5e-6))
    assert gather_seconds(8e9, 8, link) == pytest.approx(7 / 8 * 8e9 / 100e9 + 7 * 5e-6)
    assert all_to_all_seconds(8e9, 4, link) == pytest.approx(0.06, rel=1e-3)
    assert V100_DGX2H.link(17).name == "InfiniBand"
    with pytest.raises(ValueError, match="joins at most 4096 ranks, got 5000"):
        V100_DGX2H.link(5000)
    sizes = {1: (40, 1536, 16), 2: (54, 1920, 20), 4: (64, 2304, 24), 8: (72, 3072, 32)}
    paper = {1: 1.0, 2: 0.95, 4: 0.82, 8: 0.77}
    efficiency = {
        ranks: tensor_parallel_step(TransformerSize(*size), V100_DGX2H, tensor=ranks).efficiency
        for ranks, size in sizes.items()
    }
    assert [efficiency[n] for n in (1, 2, 4, 8)] == pytest.approx([1.0, 0.955, 0.89, 0.82], abs=0.005)
    assert all(abs(efficiency[n] - paper[n]) <= 0.08 for n in sizes)
    assert TransformerSize(72, 3072, 32).parameters == pytest.approx(8.3e9, rel=0.01)
    assert TransformerSize(2, 8, 2, 16, 11).parameters == sum(p.numel() for p in GPT(11, 16, 8, 2, 2).parameters())
    assert isinstance(measured_cpu(), HardwareSpec) and measured_cpu().peak_flops["fp32"] > 1e8


def test_under_torchrun_and_a_pretrained_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=51, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from functools import partial\n"
        "from flambeau.models.language import GPT\n"
        "from flambeau.training.parallel.parity import check_numerics\n"
        "rows = check_numerics(partial(GPT, 51, 16, 32, 1, 4), ranks=2) + check_numerics('hf:llama', ranks=2)\n"
        "agree = [row['agrees'] for row in rows]\n"
        "open(os.environ['RANK'], 'w').write(f'{all(agree)} {len(rows)}')\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"  # gloo's threads sometimes abort an interpreter that leaves
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29621"]
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(
        [*command, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    parameters = 16 + 12  # of the GPT (its head is its embedding) and of the Llama
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"True {parameters + 2}"] * 2

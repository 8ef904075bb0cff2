"""What the tests of tensor parallelism compute in several processes, started once for all of them."""

import copy
import math
import tempfile
from functools import cache, partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint import load, save
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from flambeau.generation.tensor_parallel import generate_split
from flambeau.models.language import BERT, GPT
from flambeau.nn import collectives as c
from flambeau.training.parallel import MeshSpec, ParallelPlan, Rule, run_processes
from flambeau.training.parallel.apply import apply
from flambeau.training.parallel.cross_entropy import VocabParallelCrossEntropy, vocab_parallel_cross_entropy, vocab_part
from flambeau.training.parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from flambeau.training.parallel.memory import memory_per_rank
from flambeau.training.parallel.parity import parity_table, replicated_drift
from flambeau.training.parallel.random import rank_stream
from flambeau.training.parallel.tensor_parallel import apply_tensor_parallel, whole
from flambeau.training.parallel.tensor_styles import thirds_from_heads
from flambeau.training.parallel.traffic import Traffic

VOCAB = 53  # no number of ranks divides it


@cache
def _folder():
    """For the checkpoint that one start writes and the other reads; removed when the tests end."""
    return tempfile.TemporaryDirectory(prefix="flambeau-test-")


@cache
def two():
    return run_processes(_two, 2, _folder().name)


@cache
def four():
    two()
    return run_processes(_four, 4, _folder().name)


def checkpoint_folder():
    return _folder().name


def gpt(dtype=torch.float64, dropout=0.0, norm="pre", vocab=VOCAB, depth=2, seed=0):
    torch.manual_seed(seed)
    return GPT(vocab, 16, 32, depth, 4, dropout=dropout, norm=norm).to(dtype)


def bert(norm):
    torch.manual_seed(0)
    return BERT(VOCAB, 16, 32, 2, 4, dropout=0.0, norm=norm).double()


def batch(seed=1, length=16):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (2, length), generator=generator)
    targets = torch.randint(VOCAB, (2, length), generator=generator)
    targets[0, :3] = -100
    return tokens, targets


def gpt_loss(model):
    return model.token_losses(*batch()).mean()


def bert_loss(model):
    tokens, targets = batch()
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 12:] = False
    order = model.order(torch.tanh(model.pooler(model.encode(tokens, mask)[:, 0])))
    return model.token_losses(tokens, targets, mask).mean() + order.logsumexp(-1).sum()


def compare(model, loss, mesh, placements="megatron"):
    """Difference of the loss, and of the gradients over the largest one, from one process."""
    alone = copy.deepcopy(model)
    expected = loss(alone)
    expected.backward()
    apply_tensor_parallel(model, mesh, placements)
    found = loss(model)
    found.backward()
    singles = dict(alone.named_parameters())
    largest = max(p.grad.abs().max().item() for p in singles.values() if p.grad is not None)
    worst = 0.0
    for name, parameter in model.named_parameters():
        if singles[name].grad is None:
            assert parameter.grad is None, name
            continue
        gradient = whole(parameter.grad)
        if ".c_attn." in name:
            gradient = thirds_from_heads(gradient, model.config.n_head)
        worst = max(worst, (gradient - singles[name].grad).abs().max().item() / largest)
    return [abs(found.item() - expected.item()) / abs(expected.item()), worst]


def transformers_models():
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    gpt2 = GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    bert = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    llama = partial(
        LlamaConfig, vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return {
        "gpt2": lambda: GPT2LMHeadModel(gpt2),
        "bert": lambda: BertForMaskedLM(bert),
        "llama": lambda: LlamaForCausalLM(llama(num_key_value_heads=2)),
        "llama, one kv head": lambda: LlamaForCausalLM(llama(num_key_value_heads=1)),
    }


def _transformers(mesh):
    tokens, _ = batch()
    found = {}
    for name, build in transformers_models().items():
        torch.manual_seed(0)
        model = build().double().eval()
        found[name] = compare(model, lambda one: one(input_ids=tokens, labels=tokens).loss, mesh)
    return found


def _adjoints(group):
    """<f(x), y> and <x, f*(y)> of every pair; "one" takes a side that all ranks hold once, "all" sums over them."""
    rank = dist.get_rank()
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + rank)
    x, y = (torch.randn(4, 6, dtype=torch.float64, generator=own) for _ in range(2))
    same = torch.randn(4, 6, dtype=torch.float64, generator=shared)
    cases = {
        "copy": (c.copy_to_ranks, same, y, "all", "one"),
        "sum": (c.sum_over_ranks, x, same, "one", "all"),
        "gather": (partial(c.gather_parts, dim=1), x[:, :3], same, "one", "all"),
        "take": (partial(c.take_part, dim=1), same, y[:, :3], "all", "one"),
        "gather_summing": (partial(c.gather_summing, dim=0), x[:2], y, "all", "all"),
        "sum_and_take": (partial(c.sum_and_take_part, dim=0), x, y[:2], "all", "all"),
    }
    found = {}
    for name, (function, given, weight, left, right) in cases.items():
        given = given.clone().requires_grad_()
        output = function(given, group=group)
        output.backward(weight)
        sides = torch.stack([(output.detach() * weight).sum(), (given.detach() * given.grad).sum()])
        total = c.all_reduce(sides, group)
        found[name] = [float((total if side == "all" else sides)[i]) for i, side in enumerate((left, right))]
    return found


def _cross_entropy(group):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = {}
    for vocab, padded in ((11, 11), (11, 16), (12, 12)):
        for smoothing in (0.0, 0.1):
            for scale in (1.0, 1e4):
                generator = torch.Generator().manual_seed(0)
                logits = (torch.randn(3, 5, padded, dtype=torch.float64, generator=generator) * scale).requires_grad_()
                targets = torch.randint(vocab, (3, 5), generator=generator)
                targets[0, 1] = -100
                weight = torch.rand(3, 5, dtype=torch.float64, generator=generator)
                expected = F.cross_entropy(
                    logits[..., :vocab].flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
                ).view(3, 5)
                (expected * weight).sum().backward()
                start, end = vocab_part(padded, rank, ranks)
                part = logits.detach()[..., start:end].clone().requires_grad_()
                loss = vocab_parallel_cross_entropy(
                    part, targets, group, vocab, padded=padded, label_smoothing=smoothing
                )
                (loss * weight).sum().backward()
                found[f"{vocab} {padded} {smoothing} {scale:g}"] = [
                    ((loss - expected).abs().max() / expected.abs().max()).item(),
                    (part.grad - logits.grad[..., start:end]).abs().max().item(),
                    part.grad[..., max(0, vocab - start) :].abs().sum().item(),
                    float(loss[0, 1]),
                    float(loss.isfinite().all()),
                ]
    half = torch.randn(2, 3, 6).bfloat16().requires_grad_()
    vocab_parallel_cross_entropy(half, torch.zeros(2, 3).long(), group, 12).sum().backward()
    found["bf16"] = [str(half.grad.dtype)]
    return found


def _layers(mesh):
    """The plain layers in the place of a GPT's, against DTensor; with and without overlap."""
    group, rank, ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    split = gpt()
    apply_tensor_parallel(split, mesh)
    expected = gpt_loss(split)
    expected.backward()
    found = {}
    gradients = {}
    for overlap in (False, True):
        model = gpt()
        with torch.no_grad():
            for block in model.blocks:
                for parent, name in ((block.attention, "qkv"), (block.mlp, "up")):
                    old = getattr(parent, name)
                    new = ColumnParallelLinear(old.in_features, old.out_features, group, async_dgrad=overlap).double()
                    new.weight.copy_(old.weight.chunk(ranks)[rank])
                    new.bias.copy_(old.bias.chunk(ranks)[rank])
                    setattr(parent, name, new)
                for parent, name in ((block.attention, "out"), (block.mlp, "down")):
                    old = getattr(parent, name)
                    new = RowParallelLinear(old.in_features, old.out_features, group).double()
                    new.weight.copy_(old.weight.chunk(ranks, 1)[rank])
                    new.bias.copy_(old.bias)
                    setattr(parent, name, new)
            new = VocabParallelEmbedding(VOCAB, 32, group).double()
            new.weight.copy_(model.embedding.weight[new.start : new.end])
            model.embedding = new
        model.head = _SplitHead(model.embedding, group)
        model.cross_entropy = VocabParallelCrossEntropy(VOCAB, group)
        loss = gpt_loss(model)
        loss.backward()
        gradients[overlap] = {name: p.grad for name, p in model.named_parameters()}
        found["loss"] = abs(loss.item() - expected.item())
    found["gradient"] = 0.0
    for name, parameter in split.named_parameters():
        local = parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad
        found["gradient"] = max(found["gradient"], (gradients[True][name] - local).abs().max().item())
    found["overlap"] = all(bool((gradients[True][n] == g).all()) for n, g in gradients[False].items())
    found["sequence"] = _sequence_layers(group)
    return found


class _SplitHead(nn.Module):
    def __init__(self, embedding, group):
        super().__init__()
        self.weight, self.group = embedding.weight, group

    def forward(self, x):
        return F.linear(c.copy_to_ranks(x, self.group), self.weight)


def _sequence_layers(group):
    """An MLP with its layers' sequence variants against the whole one."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 6, 8, dtype=torch.float64)
    torch.manual_seed(4)
    up, down = nn.Linear(8, 12).double(), nn.Linear(12, 8).double()
    expected = down(F.gelu(up(x)))
    expected.backward(weight)
    torch.manual_seed(4)
    column = ColumnParallelLinear(8, 12, group, sequence_parallel=True).double()
    row = RowParallelLinear(12, 8, group, sequence_parallel=True).double()
    part = x.detach().chunk(ranks, 1)[rank].clone().requires_grad_()
    found = row(F.gelu(column(part)))
    found.backward(weight.chunk(ranks, 1)[rank])
    gathered = ColumnParallelLinear(8, 12, group, gather_output=True, skip_bias_add=True).double()
    taking = RowParallelLinear(12, 8, group, input_is_parallel=False).double()
    differences = [
        found - expected.chunk(ranks, 1)[rank],
        part.grad - x.grad.chunk(ranks, 1)[rank],
        column.weight.grad - up.weight.grad.chunk(ranks)[rank],
        c.all_reduce(row.bias.grad, group) - down.bias.grad,
        column.weight - up.weight.chunk(ranks)[rank],  # the same seed gives the slices of the same matrix
        row.weight - down.weight.chunk(ranks, 1)[rank],
    ]
    shapes = [list(gathered(x)[0].shape), list(gathered(x)[1].shape), list(taking(torch.randn(2, 12).double()).shape)]
    return [max(float(d.abs().max()) for d in differences), shapes]


def _traffic(mesh):
    """Calls and bytes of a step of a GPT with 3 blocks, fp32."""
    found = {}
    for placements in ("megatron", "megatron_sp"):
        model = gpt(torch.float32, depth=3)
        apply_tensor_parallel(model, mesh, placements)
        with Traffic() as forward:
            logits = model(batch()[0])
        with Traffic() as loss_traffic:
            loss = model.cross_entropy(logits, batch()[1]).mean()
        with Traffic() as backward:
            loss.backward()
        found[placements] = [
            [dict(t.calls), dict(t.bytes), sorted({c.ranks for c in t.collectives})]
            for t in (forward, loss_traffic, backward)
        ]
    return found


def _kinds_of_traffic():
    """One call of each kind on a [4, 6] fp32 tensor."""
    x, half, double = torch.ones(4, 6), torch.empty(2, 6), torch.empty(8, 6)
    other = 1 - dist.get_rank()
    with Traffic() as traffic:
        dist.all_reduce(x)
        dist.all_reduce(x, async_op=True).wait()
        dist.all_gather([torch.empty(4, 6) for _ in range(2)], x)
        c.all_gather(x, 0, dist.group.WORLD).sum()
        c.reduce_scatter(x, 0, dist.group.WORLD).sum()
        dist.all_to_all_single(torch.empty(4, 6), x)
        dist.broadcast(x, 0)
        sent = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, x, other), dist.P2POp(dist.irecv, half.repeat(2, 1), other)]
        )
        for request in sent:
            request.wait()
        dist.barrier()
    dist.all_reduce(double)
    return [[one.kind, one.bytes, one.ranks] for one in traffic.collectives], traffic.total()


def _dropout(mesh):
    rank = mesh.get_local_rank()
    model = gpt(torch.float32, dropout=0.5)
    alone = copy.deepcopy(model)
    apply_tensor_parallel(model, mesh)
    model.train()
    block = model.blocks[0]
    torch.manual_seed(7)
    heads, time, dim = 2, 16, 16
    zeros = torch.zeros(64, heads, time, dim)
    # With equal scores and one-hot values attention returns its dropout mask: row t is 2/(t+1) where kept.
    mask = block.attention.core(zeros, zeros, torch.eye(time).expand(64, heads, time, dim))[:, :, -1] > 0
    shared = block.dropout(torch.ones(64, 64)) > 0
    parallel = c.all_gather(mask[None].float(), 0, mesh.get_group())
    replicated = c.all_gather(shared[None].float(), 0, mesh.get_group())
    found = {
        "parallel_agreement": float((parallel[0] == parallel[1]).float().mean()),
        "draws": mask.numel(),
        "replicated_equal": bool((replicated[0] == replicated[1]).all()),
        "kept": float(mask.float().mean()),
    }
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for function in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(11)
        function(x).square().sum().backward()
        gradients.append([p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in block.parameters()])
    found["recomputed_equal"] = all(bool((a == b).all()) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        losses = {}
        for name, one in (("split", model), ("alone", alone)):
            torch.manual_seed(13)
            losses[name] = torch.stack([gpt_loss(one) for _ in range(200)])
    found["means"] = [float(losses[name].mean()) for name in ("split", "alone")]
    found["standard_error"] = math.hypot(*(float(losses[n].std()) / math.sqrt(200) for n in ("split", "alone")))
    torch.manual_seed(17)
    with rank_stream(rank):
        inside = torch.rand(4)
    found["inside"], found["behind"] = inside, torch.rand(4)
    return found


def _training(mesh):
    """50 steps with dropout: do the copies stay equal? And 4 steps of sequence parallelism against one process."""
    model = gpt(torch.float32, dropout=0.1)
    apply_tensor_parallel(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(5)
    for step in range(50):
        optimizer.zero_grad()
        model.token_losses(*batch(step)).mean().backward()
        optimizer.step()
    found = {"drift": replicated_drift(model, mesh)}
    with torch.no_grad():
        if mesh.get_local_rank() == 1:
            model.blocks[1].mlp_norm.bias += 1e-3
    found["disturbed"] = replicated_drift(model, mesh)
    losses = {}
    for placements in (None, "megatron_sp"):
        model = gpt()
        if placements:
            apply_tensor_parallel(model, mesh, placements)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses[placements] = []
        for step in range(4):
            optimizer.zero_grad()
            loss = model.token_losses(*batch(step)).mean()
            loss.backward()
            optimizer.step()
            losses[placements].append(loss.item())
    found["sequence_parallel_losses"] = max(
        abs(a - b) for a, b in zip(losses[None], losses["megatron_sp"], strict=True)
    )
    return found


def _clip(mesh_spec):
    alone, model = gpt(), gpt()
    gpt_loss(alone).backward()
    expected = float(nn.utils.clip_grad_norm_(alone.parameters(), 0.1))
    parallel = apply(ParallelPlan(mesh_spec), model)
    parallel.call(lambda: gpt_loss(model).backward())
    parallel.reduce_gradients()
    return [float(parallel.clip_grad_norm(0.1)), expected]


def _agreement(mesh):
    """Messages of models that differ over the ranks, before any of their tensors is sent."""
    rank = mesh.get_local_rank()
    messages = []
    for build, placements in (
        (lambda: gpt(vocab=53 + rank), "megatron"),
        (lambda: gpt(), ("megatron", "megatron_sp")[rank]),
    ):
        try:
            apply_tensor_parallel(build(), mesh, placements)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    # Ranks that built other values: the first one's count.
    model = gpt(seed=rank)
    apply_tensor_parallel(model, mesh)
    position = c.all_gather(model.position.weight.detach()[None], 0, mesh.get_group())
    return messages, bool((position[0] == position[1]).all())


def _generation(mesh):
    alone = gpt()
    model = copy.deepcopy(alone)
    apply_tensor_parallel(model, mesh)
    prompt = batch()[0][:, :4]
    greedy = generate_split(model, prompt, 12, mesh, temperature=0)
    expected = prompt
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, alone(expected)[:, -1].argmax(-1, keepdim=True)], 1)
    # Every rank has another seed: only the first rank's may count.
    generator = torch.Generator().manual_seed(100 + mesh.get_local_rank())
    sampled = generate_split(model, prompt, 8, mesh, top_k=5, generator=generator)
    return {"greedy": greedy, "expected": expected, "sampled": sampled}


def _memory(mesh):
    torch.manual_seed(0)
    model = GPT(256, 64, 128, 2, 4)
    apply_tensor_parallel(model, mesh)
    return memory_per_rank(model)


def _slices(mesh):
    """Do the parts of the weights, joined, give the model of one process bit for bit?"""
    model, alone = gpt(), dict(gpt().named_parameters())
    apply_tensor_parallel(model, mesh)
    return all(bool((whole(p) == alone[name]).all()) for name, p in model.named_parameters())


def _optimizer_state(model):
    """Two steps of Adam; the state that a checkpoint holds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        model.token_losses(*batch(step)).mean().backward()
        optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    moments = {
        f"{name}.{key}": optimizer.state[p][key] for name, p in zip(names, model.parameters(), strict=True)
        for key in ("exp_avg", "exp_avg_sq")
    }  # fmt: skip
    return {name: p.detach() for name, p in model.named_parameters()} | moments


def _own_rules(mesh):
    """A plain MLP split by rules."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    rules = (Rule("0", "column"), Rule("2", "row"))
    return compare(model, lambda one: one(torch.ones(4, 6).double()).square().sum(), mesh, rules)


def _two(folder):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    group = mesh.get_group()
    found = {
        "adjoints": _adjoints(group),
        "cross_entropy": _cross_entropy(group),
        "layers": _layers(mesh),
        "gpt": {
            f"{norm} {placements}": compare(gpt(norm=norm), gpt_loss, mesh, placements)
            for norm in ("pre", "post")
            for placements in ("megatron", "megatron_sp")
        },
        "bert": {
            f"{norm} {placements}": compare(bert(norm), bert_loss, mesh, placements)
            for norm in ("pre", "post")
            for placements in ("megatron", "megatron_sp")
        },
        "fp32": compare(gpt(torch.float32), gpt_loss, mesh),
        "own_rules": _own_rules(mesh),
        "traffic": _traffic(mesh),
        "kinds_of_traffic": _kinds_of_traffic(),
        "dropout": _dropout(mesh),
        "training": _training(mesh),
        "clip": _clip(MeshSpec(tp=2)),
        "agreement": _agreement(mesh),
        "generation": _generation(mesh),
        "memory": _memory(mesh),
        "slices": _slices(mesh),
        "parity": parity_table(gpt(torch.float32), gpt_loss, mesh),
    }
    try:
        found["transformers"] = _transformers(mesh)
    except ModuleNotFoundError:
        found["transformers"] = None
    model = gpt()
    apply_tensor_parallel(model, mesh)
    state = _optimizer_state(model)
    save(state, checkpoint_id=folder)
    found["state"] = {name: whole(tensor) for name, tensor in state.items()}
    return found


def _four(folder):
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    found = {
        "gpt": compare(gpt(), gpt_loss, mesh),
        "sequence": compare(gpt(), gpt_loss, mesh, "megatron_sp"),
        "fp32": compare(gpt(torch.float32), gpt_loss, mesh),
        "clip": _clip(MeshSpec(dp_replicate=2, tp=2)),
        "sharded_clip": _clip(MeshSpec(dp_shard=2, tp=2)),
    }
    model = gpt(seed=9)
    apply_tensor_parallel(model, mesh)
    state = _optimizer_state(model)
    load(state, checkpoint_id=folder)
    found["state"] = {name: whole(tensor) for name, tensor in state.items()}
    return found

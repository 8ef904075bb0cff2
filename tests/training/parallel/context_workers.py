"""What the processes of tests/training/parallel/test_context_parallel.py compute. Each returns plain data."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flambeau.models.language import BERT, GPT
from flambeau.nn.attention.core import AttentionSpec
from flambeau.training.parallel.context_parallel import apply_context_parallel, context_parameters
from flambeau.training.parallel.plan import ContextSpec
from flambeau.training.parallel.sequence_split import first_token, sequence_mean, shard_sequence, unshard_sequence

VOCAB, LENGTH = 31, 40


def gpt():
    torch.manual_seed(0)
    return GPT(VOCAB, LENGTH, width=32, depth=2, heads=4, dropout=0.0).double()


def bert():
    torch.manual_seed(0)
    return BERT(VOCAB, LENGTH, width=32, depth=2, heads=4, dropout=0.0).double()


def batch_of(length, rows=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(0, VOCAB, (2, rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < 0.6] = -100
    mask = torch.arange(length) < torch.tensor([length, length - 4, 5])[:, None]
    targets[~mask] = -100
    segments = (torch.arange(length) >= length // 2).long().expand(rows, -1)
    order = torch.randint(0, 2, (rows,), generator=generator)
    return {"tokens": tokens, "targets": targets, "mask": mask, "segments": segments, "order": order}


def gpt_loss(model, batch, group, ranks=1):
    losses = model.token_losses(batch["tokens"], batch["targets"], batch.get("positions"))
    return sequence_mean(losses, batch["targets"] != -100, group)


def bert_loss(model, batch, group, ranks=1):
    logits, order = model(batch["tokens"], batch["mask"], batch["segments"], batch.get("positions"))
    losses = model.cross_entropy(logits, batch["targets"])
    mean = sequence_mean(losses, batch["targets"] != -100, group)
    return mean + torch.nn.functional.cross_entropy(order, batch["order"]) / ranks


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model, loss, batch, spec, mesh, single):
    """Largest relative difference of loss and gradients, summed as `context_parameters` says, from one process."""
    ranks = mesh.size()
    plain = copy.deepcopy(model)
    expected = loss(plain, batch, single)
    expected.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply_context_parallel(model, mesh, spec)
    if spec.region == "input":
        value = loss(model, shard_sequence(batch, mesh, spec.balance), mesh.get_group(), ranks)
    else:
        value = loss(model, batch, single)
    value.backward()
    value = value.detach().clone()
    if spec.region == "input":
        dist.all_reduce(value, group=mesh.get_group())
    for parameter in context_parameters(model):
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=mesh.get_group())
    worst = float((value - expected.detach()).abs() / expected.detach().abs())
    ours, theirs = gradients_of(model), gradients_of(plain)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        worst = max(worst, float((ours[name] - gradient).abs().max() / theirs[name].abs().max().clamp(min=1e-3)))
    return worst


def models(mesh, single):
    """Gradients of whole models: GPT and BERT, dense and sparse, both regions, with and without padding."""
    ranks = mesh.size()
    found = {}
    for region in ("blocks", "input"):
        for length in (LENGTH // (2 * ranks) * 2 * ranks, 29):
            for balance in ("none", "zigzag"):
                spec = ContextSpec(region=region, balance=balance)
                found[f"gpt, {region}, {balance}, {length}"] = compare(
                    gpt(), gpt_loss, batch_of(length), spec, mesh, single
                )
                found[f"bert, {region}, {balance}, {length}"] = compare(
                    bert(), bert_loss, batch_of(length), spec, mesh, single
                )
            for attention in ("window:6", "linformer:5"):
                model = bert()
                AttentionSpec.from_string(attention).apply(model, LENGTH)
                found[f"{attention}, {region}, {length}"] = compare(
                    model, bert_loss, batch_of(length), ContextSpec(region=region), mesh, single
                )
    for mode in ("two_phase", *(["ulysses"] if 4 % ranks == 0 else [])):
        spec = ContextSpec(mode=mode)
        found[f"bert, {mode}"] = compare(bert(), bert_loss, batch_of(29), spec, mesh, single)
        found[f"gpt, {mode}"] = compare(gpt(), gpt_loss, batch_of(29), spec, mesh, single)
    return found


def transformers_models(mesh, single):
    """The same with BERT, GPT-2 and Llama of transformers, with padding masks."""
    import transformers

    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": LENGTH}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    configs = {
        "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**sizes, **quiet)),
        "gpt2": (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, **silent),
        ),
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes, num_key_value_heads=2)),
        "mistral": (
            transformers.MistralForCausalLM,
            transformers.MistralConfig(**sizes, num_key_value_heads=2, sliding_window=7),
        ),
    }
    batch = batch_of(29)
    inputs = {"input_ids": batch["tokens"], "labels": batch["targets"]}
    found = {}

    def loss(model, batch, group, ranks=1):
        return model(**batch).loss

    for name, (kind, config) in configs.items():
        for mask in ({}, {"attention_mask": batch["mask"].long()}):
            for balance in ("none", "zigzag"):
                torch.manual_seed(0)
                model = kind(config).double()
                found[f"{name}, {balance}, {len(mask)}"] = compare(
                    model, loss, inputs | mask, ContextSpec(balance=balance), mesh, single
                )
    return found


def round_trip(mesh, single):
    """Batches cut and put together again, with gradients; heads on the first token; errors."""
    ranks, rank = mesh.size(), mesh.get_local_rank()
    found = {}
    for balance in ("none", "zigzag"):
        for length in (2 * ranks * 3, 2 * ranks * 3 - 1):
            batch = batch_of(length) | {"weights": torch.randn(3, length, 2, dtype=torch.float64), "name": "any"}
            dist.broadcast(batch["weights"], 0, group=mesh.get_group())
            part = shard_sequence(batch, mesh, balance)
            positions = part["positions"][0]
            same = [
                torch.equal(unshard_sequence(part[name], mesh, balance, length), batch[name])
                for name in ("tokens", "targets", "mask", "segments", "weights")
            ]
            padding = positions >= length
            ok = part["order"] is batch["order"] and part["name"] == "any" and all(same)
            ok = ok and bool((part["targets"][:, padding] == -100).all()) and not part["mask"][:, padding].any()
            local = part["weights"].requires_grad_()
            whole = unshard_sequence(local, mesh, balance, length)
            (gradient,) = torch.autograd.grad((whole * batch["weights"]).sum(), local)
            ok = ok and torch.equal(gradient[:, ~padding], local.detach()[:, ~padding])
            pair = shard_sequence((batch["tokens"], batch["targets"]), mesh, balance)
            ok = ok and torch.equal(pair[0], part["tokens"]) and torch.equal(pair[1], part["targets"])
            ok = ok and torch.equal(shard_sequence(batch["tokens"], mesh, balance), part["tokens"])
            bare = shard_sequence({"tokens": batch["tokens"]}, mesh, balance)
            ok = ok and ("mask" in bare) == (length % 2 == 1)
            found[f"{balance}, {length}"] = ok
    hidden = torch.full((2, 3), float(rank), dtype=torch.float64, requires_grad=True)
    shared = first_token(hidden, mesh.get_group())
    (gradient,) = torch.autograd.grad((shared * (rank + 1)).sum(), hidden)
    expected = sum(range(1, ranks + 1)) if rank == 0 else 0
    found["first token"] = bool((shared == 0).all() and (gradient == expected).all())
    return found


def mistakes(mesh, single):
    """Messages of what cannot be spread over ranks."""
    found = []

    def attempt(function, *arguments):
        try:
            function(*arguments)
            found.append("no error")
        except (ValueError, TypeError) as error:
            found.append(str(error))

    attempt(apply_context_parallel, torch.nn.Linear(2, 2), mesh, ContextSpec())
    loose = torch.nn.Module()
    loose.one, loose.two = gpt().blocks[0], gpt().blocks[1]
    attempt(apply_context_parallel, loose, mesh, ContextSpec())
    tied = gpt()
    tied.norm.weight = tied.blocks[0].mlp_norm.weight
    attempt(apply_context_parallel, tied, mesh, ContextSpec())
    uneven = gpt()
    apply_context_parallel(uneven, mesh, ContextSpec(region="input"))
    attempt(uneven, torch.zeros(1, 4 + mesh.get_local_rank(), dtype=torch.int64))
    attempt(shard_sequence, 3, mesh)
    attempt(shard_sequence, {"order": torch.zeros(3)}, mesh)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        apply_context_parallel(bert(), mesh, ContextSpec(balance="zigzag"))
    found.append(str(caught[0].message))
    return found


def sharded(mesh, single):
    """FSDP2 over the axis that also splits sequences, with recomputation: relative error of the gradients."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import fully_shard

    ranks = mesh.size()
    plain, model = gpt(), gpt()
    batch = batch_of(29)
    gpt_loss(plain, batch, single).backward()
    apply_context_parallel(model, mesh, ContextSpec(region="input", balance="zigzag"))
    for index, block in enumerate(model.blocks):
        model.blocks[index] = checkpoint_wrapper(block)
        fully_shard(model.blocks[index], mesh=mesh)
    fully_shard(model, mesh=mesh)
    part = shard_sequence(batch, mesh, "zigzag")
    losses = model.cross_entropy(model(part["tokens"], part["positions"]), part["targets"])
    sequence_mean(losses, part["targets"] != -100, mesh.get_group()).backward()
    worst = 0.0
    ours = {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}
    assert len(context_parameters(model)) == len(ours)
    for name, parameter in plain.named_parameters():
        gradient = ours[name].grad.full_tensor() * ranks  # FSDP averages
        worst = max(worst, float((gradient - parameter.grad).abs().max() / parameter.grad.abs().max()))
    return worst


def dropout(mesh, single):
    """Dropout before the blocks is that of one process; inside of them each rank has masks of its own."""
    ranks = mesh.size()
    model = gpt()
    model.dropout.p = 0.4

    def loss(model, batch, group, ranks=1):
        torch.manual_seed(5)
        return gpt_loss(model, batch, group)

    outside = compare(model, loss, batch_of(29), ContextSpec(), mesh, single)
    masks = {}
    for region in ("blocks", "input"):
        model = gpt()
        model.dropout.p = model.blocks[0].dropout.p = 0.4
        apply_context_parallel(model, mesh, ContextSpec(region=region))
        seen = []
        model.blocks[0].dropout.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output == 0))
        model.dropout.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output == 0))
        torch.manual_seed(6)
        model(torch.zeros(3, 8 * ranks if region == "blocks" else 8, dtype=torch.int64))
        masks[region] = seen
    return {"outside": outside, "masks": masks}


def everything(sizes):
    """For each number of ranks, what the first so many find with the functions of these names; None on the others."""
    singles = [dist.new_group([rank]) for rank in range(dist.get_world_size())]  # a sum over it is the rank's own
    found = {}
    for ranks, names in sizes.items():
        group = dist.new_group(list(range(ranks)))
        found[ranks] = None
        if dist.get_rank() < ranks:
            mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("cp",))
            found[ranks] = {name: globals()[name](mesh, singles[dist.get_rank()]) for name in names}
    return found

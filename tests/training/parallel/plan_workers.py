"""Functions that the tests of plans run in processes."""

import os
import signal
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from flambeau.data import Batches
from flambeau.models.language import GPT
from flambeau.training import Interrupted, Trainer
from flambeau.training.parallel import ParallelPlan
from flambeau.training.parallel.apply import apply
from flambeau.training.parallel.checkpoint import load_sharded, save_sharded

warnings.filterwarnings("ignore")


def model(dropout=0.0):
    torch.manual_seed(0)
    return GPT(61, 32, 32, 2, 4, dropout=dropout)


def tokens(rows=8):
    return torch.randint(0, 61, (rows, 17), generator=torch.Generator().manual_seed(1))


def loss(model, batch):
    return model.token_losses(batch[:, :-1], batch[:, 1:]).mean()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(plan):
    """Against one process: loss, gradient norm and every gradient, in the second of two passes."""
    batch = tokens()
    alone = model()
    expected = loss(alone, batch)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    spread = apply(ParallelPlan.from_string(plan), model())
    for _ in range(2):
        spread.module.zero_grad()
        value = spread.call(loss, spread.module, spread.local(batch))
        value.backward()
        spread.reduce_gradients()
        ours = spread.clip_grad_norm(0.1)
    worst = max(
        (whole(a.grad) - b.grad).abs().max().item() / b.grad.abs().max().item()
        for a, b in zip(spread.module.parameters(), alone.parameters(), strict=True)
    )
    with torch.no_grad():
        evaluated = spread.call(loss, spread.module, batch)
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in spread.module.parameters())
    return {
        "loss": spread.mean({"loss": value})["loss"] - expected.item(),
        "norm": (ours - norm).item() / norm.item(),
        "gradient": worst,
        "evaluated": (evaluated - expected).item(),
        "held": held / sum(p.numel() for p in alone.parameters()),
        "any": spread.any(dist.get_rank() == 1, False),
    }


def trainer(**changes):
    settings = {
        "steps": 8, "optimizer": partial(torch.optim.Adam, lr=1e-2), "clip": 0.5, "ema": 0.9, "evaluate_every": 4,
        "select": "min", "save_every": 3,
    }  # fmt: skip
    return Trainer(**{**settings, **changes})


def evaluate(model):
    return {"held_out": loss(model, tokens(24)[16:]).item()}


def fit(plan, folder=None, stop_after=None, dropout=0.0, **changes):
    """A training; with `stop_after`, the last process is asked to stop there."""
    network = model(dropout)

    def watched(network, batch):
        if stop_after is not None and dist.get_rank() == dist.get_world_size() - 1:
            watched.steps += 1
            if watched.steps == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(network, batch)

    watched.steps = 0
    watched.__qualname__ = "loss"
    batches = Batches((tokens(16),), 8)
    try:
        done = trainer(parallel=plan, **changes).fit(
            network, lambda m, b: watched(m, b[0]), batches, evaluate=evaluate,
            folder=None if folder is None else Path(folder), seed=5,
        )  # fmt: skip
    except Interrupted as error:
        return {"interrupted": str(error)}
    return {
        "weights": {name: value.detach().clone() for name, value in network.state_dict().items()},
        "losses": [entry["loss"] for entry in done.history],
        "held_out": [entry["held_out"] for entry in done.history if "held_out" in entry],
        "plain": not any(hasattr(p, "placements") for p in network.parameters()),
        "best": done.best,
    }


def gradients_of(plans):
    return [gradients(plan) for plan in plans]


def fits(folder):
    """Everything about the training loop that two processes can show, in one start of them."""
    out = {}
    for plan in ("dp2", "fsdp2"):
        out[plan] = fit(plan)
        out[f"{plan} stopped"] = fit(plan, f"{folder}/{plan}", stop_after=5)
        out[f"{plan} continued"] = fit(plan, f"{folder}/{plan}")
        out[f"{plan} finished"] = fit(plan, f"{folder}/{plan}")
    out["dropout"] = fit("dp2", dropout=0.5)
    out["dropout stopped"] = fit("dp2", f"{folder}/dropout", stop_after=5, dropout=0.5)
    out["dropout continued"] = fit("dp2", f"{folder}/dropout", dropout=0.5)
    out["half"] = fit("dp2", f"{folder}/half", stop_after=5)
    try:
        fit("dp4")
    except ValueError as error:
        out["too many"] = str(error)
    try:
        trainer(parallel="dp2", select=None).fit(model(), loss, lambda step, generator: tokens(7))
    except ValueError as error:
        out["uneven"] = str(error)
    return out


def save_under(plan, folder):
    """Two steps of Adam under a plan, a sharded checkpoint, and what a third step gives."""
    spread = apply(ParallelPlan.from_string(plan), model())
    optimizer = torch.optim.Adam(spread.module.parameters(), lr=1e-2)
    for step in range(3):
        if step == 2:
            save_sharded(folder, spread.module, optimizer)
            saved = {name: whole(value).clone() for name, value in spread.module.state_dict().items()}
        spread.call(loss, spread.module, spread.local(tokens())).backward()
        spread.reduce_gradients()
        optimizer.step()
        optimizer.zero_grad()
    after = {name: whole(value).detach().clone() for name, value in spread.module.state_dict().items()}
    return {"saved": saved, "after": after}


def load_under(plan, folder):
    """The weights that were loaded, and what a step of Adam makes of them."""
    spread = apply(ParallelPlan.from_string(plan), model())
    optimizer = torch.optim.Adam(spread.module.parameters(), lr=1e-2)
    load_sharded(folder, spread.module, optimizer)
    loaded = {name: whole(value).detach().clone() for name, value in spread.module.state_dict().items()}
    spread.call(loss, spread.module, spread.local(tokens())).backward()
    spread.reduce_gradients()
    optimizer.step()
    return {"loaded": loaded, "after": {n: whole(v).detach().clone() for n, v in spread.module.state_dict().items()}}


def hub_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


def hub_loss(network, batch):
    return torch.nn.functional.cross_entropy(network(batch[0][:, :-1]).logits.flatten(0, 1), batch[0][:, 1:].flatten())


def fit_split(plan, kind="ours", folder=None, stop_after=None):
    """A training of a transformer whose layers, or sequences, are split."""
    network = model() if kind == "ours" else hub_model()
    steps = 0

    def counted(trained, batch):
        nonlocal steps
        steps += 1
        if steps == stop_after and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(trained, batch[0]) if kind == "ours" else hub_loss(trained, batch)

    counted.__qualname__ = f"loss of {kind}"
    try:
        done = trainer(parallel=plan, select=None).fit(
            network, counted, Batches((tokens(16),), 8), folder=folder, seed=5
        )
    except Interrupted:
        return None
    whole_weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return {"losses": [entry["loss"] for entry in done.history], "weights": whole_weights}


def splits(folder):
    out = {}
    for kind in ("ours", "hub"):
        for plan in ("tp2", "cp2"):
            out[kind, plan] = fit_split(plan, kind)
            fit_split(plan, kind, f"{folder}/{kind}-{plan}", stop_after=5)
            out[kind, plan, "continued"] = fit_split(plan, kind, f"{folder}/{kind}-{plan}")
            fit_split(plan, kind, f"{folder}/{kind}-{plan}-half", stop_after=5)
    return {" ".join(key): value for key, value in out.items()}

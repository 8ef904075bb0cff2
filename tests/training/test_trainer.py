"""The training loop: exact resume after kills, and each argument against its definition."""

import errno
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from training_cases import evaluate, loss, make_data, make_model, make_trainer, train_in

from flambeau.data import Batches
from flambeau.training import CheckpointError, Interrupted, Precision, Trainer, WarmupCosine, checkpoint


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def mse(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def linear_problem(samples: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, generator=generator)
    return x, x @ torch.randn(5, 2, generator=generator)


def linear_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 2)


# ---- exact resume


@pytest.fixture(scope="module")
def processes():
    """Fresh processes that have torch imported already: an import each would take most of the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_cases"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_training_ends_with_the_same_bits(tmp_path, processes, precision):
    """SIGKILL after random numbers of steps and at random moments within one; every trace of it must be gone."""

    def launch():
        ours, theirs = processes.Pipe()
        process = processes.Process(target=train_in, args=(tmp_path / "killed", precision, theirs))
        process.start()
        theirs.close()
        return process, ours

    straight = make_model()
    fit = make_trainer(precision=precision).fit(
        straight, loss, make_data(), evaluate=evaluate, folder=tmp_path / "straight", seed=3
    )
    rng = random.Random(precision)
    for _ in range(4):
        process, messages = launch()
        for _ in range(rng.randint(2, 6)):
            messages.recv()
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert any((tmp_path / "killed" / "checkpoints").glob("step-*")), "the kills should leave something to resume"
    process, messages = launch()
    while isinstance(message := messages.recv(), int):
        pass
    process.join()
    assert message == ("done", fit.steps)
    assert equal(load_file(tmp_path / "killed" / "final.safetensors"), straight.state_dict())
    history = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert history == fit.history
    for name in ("average", "optimizer", "rng", "best"):
        file = f"checkpoints/step-00000030/{name}.safetensors"
        assert equal(load_file(tmp_path / "straight" / file), load_file(tmp_path / "killed" / file)), name


def test_the_seeds_and_kills_matter(tmp_path):
    """The equality above is no accident of a training that ignores its randomness."""
    weights = []
    for seed in (3, 4):
        model = make_model()
        make_trainer().fit(model, loss, make_data(), evaluate=evaluate, seed=seed)
        weights.append(model.state_dict())
    assert not equal(*weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_raises(tmp_path, number):
    straight, stopped = make_model(), make_model()
    make_trainer().fit(straight, loss, make_data(), evaluate=evaluate, seed=3)
    trainer = make_trainer(save_every=1000)

    def stopping_loss(model, batch):
        stopping_loss.calls += 1
        if stopping_loss.calls == 31:
            os.kill(os.getpid(), number)
        return loss(model, batch)

    stopping_loss.calls = 0
    stopping_loss.__module__, stopping_loss.__qualname__ = loss.__module__, loss.__qualname__
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"after step 16 of 30; saved in"):
        trainer.fit(stopped, stopping_loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    assert signal.getsignal(number) is before
    fresh = make_model()
    trainer.fit(fresh, loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    assert equal(fresh.state_dict(), straight.state_dict())


def test_a_finished_training_returns_at_once(tmp_path):
    first, second = make_model(), make_model()
    fit = make_trainer().fit(first, loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)

    def never(model, batch):
        raise AssertionError("trained again")

    never.__module__, never.__qualname__ = loss.__module__, loss.__qualname__
    again = make_trainer().fit(second, never, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    assert equal(first.state_dict(), second.state_dict())
    assert (again.history, again.steps, again.best, again.seconds) == (fit.history, fit.steps, fit.best, fit.seconds)
    assert equal(load_file(tmp_path / "model.safetensors"), first.state_dict())
    assert not second.training


def test_another_training_in_the_same_folder_is_refused(tmp_path):
    make_trainer(steps=4).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path)
    for changed, named in (
        (dict(steps=5), "trainer.steps was 4 and is 5"),
        (dict(steps=4, ema=0.5), "trainer.ema was 0.9"),
    ):
        with pytest.raises(CheckpointError, match=named):
            make_trainer(**changed).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path)
    optimizer = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    with pytest.raises(CheckpointError, match="trainer.optimizer.lr was 0.1 and is 0.2"):
        make_trainer(steps=4, optimizer=optimizer).fit(
            make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path
        )
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        make_trainer(steps=4).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=1)
    other = nn.Sequential(*make_model(), nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"another model: it lacks \['5.bias', '5.weight'\]"):
        make_trainer(steps=4).fit(other, loss, make_data(), evaluate=evaluate, folder=tmp_path)
    wider = make_model()
    wider[4] = nn.Linear(16, 4)
    with pytest.raises(CheckpointError, match=r"4.weight is torch.float32 \[4, 16\] in the model"):
        make_trainer(steps=4).fit(wider, loss, make_data(), evaluate=evaluate, folder=tmp_path)
    make_trainer(steps=4, save_every=2, keep=1).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "manifest"])
def test_a_damaged_newest_checkpoint_falls_back(tmp_path, damage):
    straight = make_model()
    make_trainer().fit(straight, loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    if damage == "truncated":
        os.truncate(newest / "model.safetensors", 100)
    elif damage == "flipped":
        content = bytearray((newest / "optimizer.safetensors").read_bytes())
        content[-3] ^= 1
        (newest / "optimizer.safetensors").write_bytes(content)
    elif damage == "removed":
        (newest / "rng.safetensors").unlink()
    else:
        (newest / "manifest.json").write_text("{")
    again = make_model()
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        make_trainer().fit(again, loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    assert equal(again.state_dict(), straight.state_dict())


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path):
    make_trainer(steps=2).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="remove the folder"):
        make_trainer(steps=2).fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path)


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    straight = make_model()
    make_trainer().fit(straight, loss, make_data(), evaluate=evaluate, seed=3)
    real, calls = checkpoint.save_file, []

    def fills_up(tensors, path):
        calls.append(path)
        if len(calls) > 28:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fills_up)
    with pytest.raises(OSError, match="No space left on device: step 14 was not saved"):
        make_trainer().fit(make_model(), loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000010", "step-00000012"]
    monkeypatch.setattr(checkpoint, "save_file", real)
    again = make_model()
    make_trainer().fit(again, loss, make_data(), evaluate=evaluate, folder=tmp_path, seed=3)
    assert equal(again.state_dict(), straight.state_dict())


def test_nothing_outside_is_changed_and_saving_changes_nothing(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = (torch.rand(2), np.random.rand(2), random.random())
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    models = [make_model() for _ in range(3)]
    torch.manual_seed(5)
    make_trainer().fit(models[0], loss, make_data(), evaluate=evaluate)
    make_trainer(save_every=7).fit(models[1], loss, make_data(), evaluate=evaluate, folder=tmp_path)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1]) and random.random() == expected[2]
    assert equal(models[0].state_dict(), models[1].state_dict())
    # without selection, evaluating more often changes nothing either
    make_trainer(select=None, evaluate_every=3).fit(models[1], loss, make_data(), evaluate=evaluate)
    make_trainer(select=None).fit(models[2], loss, make_data())
    again = make_model()
    make_trainer(select=None, evaluate_every=3).fit(again, loss, make_data(), evaluate=evaluate)
    assert equal(models[2].state_dict(), again.state_dict())


# ---- the arguments


def test_a_step_is_the_optimizers_own():
    """The plain trainer equals the loop that anybody would write by hand."""
    x, y = linear_problem()
    ours, bare = linear_model(), linear_model()
    batches = Batches((x, y), 16)
    fit = Trainer(steps=9).fit(ours, mse, batches, seed=11)
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(11)
    losses = []
    for step in range(9):
        value = mse(bare, batches.batch(step, generator))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert equal(ours.state_dict(), bare.state_dict())
    assert [entry["loss"] for entry in fit.history] == losses
    assert [entry["step"] for entry in fit.history] == list(range(1, 10))


def test_accumulation_equals_the_big_batch():
    x, y = linear_problem()
    small, big = linear_model(), linear_model()
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    first = Trainer(epochs=5, accumulate=4, optimizer=optimizer).fit(small, mse, Batches((x, y), 4))
    second = Trainer(epochs=5, optimizer=optimizer).fit(big, mse, Batches((x, y), 16))
    assert first.steps == second.steps == 20
    for one, other in zip(small.parameters(), big.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert first.history[-1]["loss"] == pytest.approx(second.history[-1]["loss"], rel=1e-4)


def test_epochs_and_steps():
    x, y = linear_problem(50)
    data = Batches((x, y), 16)
    assert Trainer(epochs=4).total(data) == 12
    assert Trainer(epochs=4, accumulate=2).total(data) == 6
    assert Trainer(epochs=4, steps=5).total(data) == 5
    assert Trainer(epochs=1, steps=500).total(data) == 3
    assert Trainer(steps=7).total(lambda step, generator: None) == 7
    with pytest.raises(ValueError, match="epochs need data with a length"):
        Trainer(epochs=1).total(lambda step, generator: None)


def test_average_follows_its_formula():
    x, y = linear_problem()
    batches = Batches((x, y), 16)
    averaged, plain = linear_model(), linear_model()
    seen = [averaged.weight.detach().clone()]
    optimizer = partial(torch.optim.SGD, lr=0.3)
    for steps in range(1, 31):
        plain = linear_model()
        Trainer(steps=steps, optimizer=optimizer).fit(plain, mse, batches)
        seen.append(plain.weight.detach().clone())
    Trainer(steps=30, optimizer=optimizer, ema=0.6).fit(averaged, mse, batches)
    average = seen[0]
    for update, weight in enumerate(seen[1:], 1):
        decay = min(0.6, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(averaged.weight.detach(), average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(average, plain.weight)


def test_clip_bounds_and_reports_the_norm():
    x, y = linear_problem()
    model = linear_model()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    batches = Batches((x, y), 16)
    mse(model, batches.batch(0, torch.Generator().manual_seed(0))).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()
    model.zero_grad()
    fit = Trainer(steps=1, clip=0.01, optimizer=partial(torch.optim.SGD, lr=1.0)).fit(model, mse, batches)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert fit.history[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_schedule_multiplies_each_groups_rate():
    x, y = linear_problem()

    def two_rates(parameters):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight], "lr": 1.0}, {"params": [bias], "lr": 0.0}])

    model = linear_model()
    bias = model.bias.detach().clone()
    fit = Trainer(steps=3, optimizer=two_rates, schedule=lambda step, total: 0.1 * (step + 1) / total).fit(
        model, mse, Batches((x, y), 16)
    )
    assert [entry["lr"] for entry in fit.history] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert torch.equal(model.bias, bias)


def test_stateful_schedule_resumes_and_leaves_the_trainer_alone(tmp_path):
    class Decaying:
        def __init__(self):
            self.factor = 1.0

        def __call__(self, step, total):
            self.factor *= 0.9
            return self.factor

        def state_dict(self):
            return {"factor": self.factor}

        def load_state_dict(self, state):
            self.factor = state["factor"]

    x, y = linear_problem()
    trainer = Trainer(steps=6, schedule=Decaying())
    model = linear_model()

    def interrupted(model, batch):
        interrupted.calls += 1
        if interrupted.calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return mse(model, batch)

    interrupted.calls = 0
    with pytest.raises(Interrupted):
        trainer.fit(model, interrupted, Batches((x, y), 16), folder=tmp_path)
    fit = trainer.fit(model, interrupted, Batches((x, y), 16), folder=tmp_path)
    assert [entry["lr"] for entry in fit.history] == pytest.approx([1e-3 * 0.9**step for step in range(1, 7)])


def test_selection_and_patience():
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 9.0, 9.0])
    snapshots = []

    def scripted(model):
        assert not model.training and not torch.is_grad_enabled()
        snapshots.append(model.weight.detach().clone())
        return {"score": next(values), "loss": 0.0}

    x, y = linear_problem()
    model = linear_model()
    fit = Trainer(steps=50, evaluate_every=2, select="min", patience=3).fit(
        model, mse, Batches((x, y), 16), evaluate=scripted
    )
    assert fit.steps == 10 and fit.best == {"step": 4, "score": 1.0, "loss": 0.0}
    assert torch.equal(model.weight, snapshots[1]) and not torch.equal(model.weight, snapshots[-1])
    assert fit.history[3]["score"] == 1.0 and fit.history[3]["eval_loss"] == 0.0 and "score" not in fit.history[2]


def test_nan_values_are_never_the_best():
    values = iter([float("nan"), 1.0, float("nan")])
    x, y = linear_problem()
    fit = Trainer(steps=3, evaluate_every=1, select="max").fit(
        linear_model(), mse, Batches((x, y), 16), evaluate=lambda model: {"score": next(values)}
    )
    assert fit.best == {"step": 2, "score": 1.0}


def test_non_finite_loss_names_the_step_and_saves_nothing(tmp_path):
    x, y = linear_problem()

    def diverges(model, batch):
        diverges.calls += 1
        return mse(model, batch) * (float("inf") if diverges.calls == 5 else 1)

    diverges.calls = 0
    with pytest.raises(FloatingPointError, match=r"the loss is inf at step 5 of 9; the last finite one was \d"):
        Trainer(steps=9, save_every=1).fit(linear_model(), diverges, Batches((x, y), 16), folder=tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_runs_in_its_dtype_and_still_learns(precision, dtype):
    x, y = linear_problem()
    seen = set()

    def watching(model, batch):
        out = model(batch[0])
        seen.add(out.dtype)
        return nn.functional.mse_loss(out.float(), batch[1])

    model = linear_model()
    fit = Trainer(epochs=60, precision=precision, clip=10.0, optimizer=partial(torch.optim.SGD, lr=0.1)).fit(
        model, watching, Batches((x, y), 16)
    )
    assert seen == {dtype} and model.weight.dtype is torch.float32
    assert fit.history[-1]["loss"] < 1e-3 < fit.history[0]["loss"]
    # fp16 begins with a scale of 65536, at which the first gradients overflow and their steps are skipped
    norms = [entry["grad_norm"] for entry in fit.history if math.isfinite(entry["grad_norm"])]
    assert len(norms) > 200 and max(norms) < 100, "the norm must be that of the unscaled gradient"


def test_precision_part_wraps_every_forward_pass_and_the_whole_training():
    class Rounding(Precision):
        def __init__(self):
            self.events = []

        def autocast(self, device):
            self.events.append("forward")
            return super().autocast(device)

        def attach(self, model, optimizer):
            def on_grid(optimizer, args, kwargs):
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.data.mul_(8).round_().div_(8)

            self.events.append("attach")
            return optimizer.register_step_post_hook(on_grid)

    x, y = linear_problem()
    precision = Rounding()
    model = linear_model()
    Trainer(steps=3, accumulate=2, precision=precision, optimizer=partial(torch.optim.SGD, lr=0.3)).fit(
        model, mse, Batches((x, y), 16)
    )
    assert precision.events == ["attach"] + ["forward"] * 6
    assert torch.equal(model.weight * 8, (model.weight * 8).round())


def test_compiled_and_plain_checkpoints_are_exchangeable(tmp_path):
    x, y = linear_problem()
    model = linear_model()
    compiled = torch.compile(linear_model(), backend="eager")
    trainer = Trainer(steps=4, ema=0.5)
    trainer.fit(compiled, mse, Batches((x, y), 16), folder=tmp_path / "a")
    assert set(load_file(tmp_path / "a" / "model.safetensors")) == {"weight", "bias"}
    state = checkpoint.load(tmp_path / "a" / "checkpoints" / "step-00000004")
    assert set(state["optimizer"]["state"]) == {"weight", "bias"}
    identity = {**state["identity"], "model": "Linear"}
    checkpoint.save(tmp_path / "a" / "checkpoints", 4, {**state, "identity": identity}, keep=1)
    trainer.fit(model, mse, Batches((x, y), 16), folder=tmp_path / "a")
    assert equal(model.state_dict(), {name.replace("_orig_mod.", ""): p for name, p in compiled.state_dict().items()})


def test_tied_and_frozen_parameters(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight
            self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

        def forward(self, x):
            return self.out(self.embed(x) * self.frozen)

    def next_token(model, batch):
        return nn.functional.cross_entropy(model(batch[:-1]), batch[1:])

    torch.manual_seed(0)
    first, second = Tied(), Tied()
    data = Batches(torch.arange(70) % 7, 10)
    trainer = Trainer(steps=5)
    trainer.fit(first, next_token, data, folder=tmp_path)
    trainer.fit(second, next_token, data, folder=tmp_path)
    assert torch.equal(first.embed.weight, second.out.weight) and second.out.weight is second.embed.weight
    assert torch.equal(second.frozen, torch.ones(4))


def test_functions_of_the_step_resume_with_their_generator(tmp_path):
    def data(step, generator):
        x = torch.randn(8, 5, generator=generator)
        return x, x[:, :2] * step

    def stops(model, batch):
        stops.calls += 1
        if stops.calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return mse(model, batch)

    straight, stopped = linear_model(), linear_model()
    stops.calls = 10
    Trainer(steps=8).fit(straight, stops, data)
    stops.calls = 0
    with pytest.raises(Interrupted):
        Trainer(steps=8).fit(stopped, stops, data, folder=tmp_path)
    Trainer(steps=8).fit(stopped, stops, data, folder=tmp_path)
    assert equal(straight.state_dict(), stopped.state_dict())


class WithMaster(torch.optim.SGD):
    """Keeps an fp32 copy of bf16 parameters, as mixed-precision optimisers do; ``load_state_dict`` would round it."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                master = state.setdefault("master", parameter.detach().float())
                state["steps"] = state.get("steps", 0) + 1
                master.sub_(group["lr"] * parameter.grad.float())
                parameter.copy_(master)


OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1, lr_decay=0.1),
    "asgd": partial(torch.optim.ASGD, lr=0.1),
    "adafactor": partial(torch.optim.Adafactor, lr=0.1),
    "master weights": partial(WithMaster, lr=0.01),
    "groups": lambda parameters: torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim < 2], "lr": 0.1},
        ]
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimisers_state_resumes_exactly(tmp_path, name):
    dtype = torch.bfloat16 if name == "master weights" else torch.float32
    x, y = (values.to(dtype) for values in linear_problem())
    trainer = Trainer(steps=12, optimizer=OPTIMIZERS[name], schedule=WarmupCosine(3))

    def stops(model, batch):
        stops.calls += 1
        if stops.calls in stops.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return mse(model, batch)

    straight, stopped = linear_model().to(dtype), linear_model().to(dtype)
    stops.calls, stops.at = 0, ()
    trainer.fit(straight, stops, Batches((x, y), 16))
    stops.calls, stops.at = 0, (3, 8)
    for _ in range(2):
        with pytest.raises(Interrupted):
            trainer.fit(stopped, stops, Batches((x, y), 16), folder=tmp_path)
        stopped = linear_model().to(dtype)
    trainer.fit(stopped, stops, Batches((x, y), 16), folder=tmp_path)
    assert stops.calls == 12 and equal(straight.state_dict(), stopped.state_dict())


def test_an_evaluation_may_train_something_of_its_own():
    """A probe fitted inside an evaluation learns, and the outer training does not notice."""
    x, y = linear_problem()
    probes = []

    def probe(model):
        inner = linear_model()
        probes.append(
            Trainer(steps=20, optimizer=partial(torch.optim.SGD, lr=0.1)).fit(inner, mse, Batches((x, y), 16))
        )
        return {"probe": probes[-1].history[-1]["loss"]}

    probed, plain = linear_model(), linear_model()
    Trainer(steps=6, evaluate_every=2).fit(probed, mse, Batches((x, y), 16), evaluate=probe)
    Trainer(steps=6).fit(plain, mse, Batches((x, y), 16))
    assert equal(probed.state_dict(), plain.state_dict())
    assert all(fit.history[-1]["loss"] < fit.history[0]["loss"] / 2 for fit in probes)


def test_parts_that_the_user_froze_in_evaluation_mode_stay_so():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()
    running = model[1].running_mean.clone()
    x, y = linear_problem()
    Trainer(steps=4, evaluate_every=2).fit(model, mse, Batches((x, y), 16), evaluate=lambda model: {"score": 0.0})
    assert torch.equal(model[1].running_mean, running)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_exact_on_a_gpu_and_batches_are_moved_there(tmp_path, precision):
    def stops(model, batch):
        assert batch[0].is_cuda
        stops.calls += 1
        if stops.calls in stops.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    straight, stopped = make_model().cuda(), make_model().cuda()
    stops.calls, stops.at = 0, ()
    fit = make_trainer(precision=precision).fit(straight, stops, make_data(), seed=3, evaluate=on_gpu)
    stops.calls, stops.at = 0, (21,)
    with pytest.raises(Interrupted):
        make_trainer(precision=precision).fit(stopped, stops, make_data(), seed=3, evaluate=on_gpu, folder=tmp_path)
    stopped = make_model().cuda()
    again = make_trainer(precision=precision).fit(stopped, stops, make_data(), seed=3, evaluate=on_gpu, folder=tmp_path)
    assert equal(straight.state_dict(), stopped.state_dict()) and again.history == fit.history


def on_gpu(model):
    x, y = make_data(jitter=False).source
    return {"nll": nn.functional.cross_entropy(model(x.cuda()), y.cuda()).item()}


def test_tensorboard_and_jsonl_are_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, y = linear_problem()
    fit = Trainer(steps=12, evaluate_every=5).fit(
        linear_model(), mse, Batches((x, y), 16), folder=tmp_path, evaluate=lambda model: {"score": 2.0}
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("score")] == [5, 10, 12]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == fit.history


# ---- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "give steps or epochs"),
        (dict(steps=0), "steps must be an integer of at least 1, got 0"),
        (dict(steps=1.5), "steps must be an integer"),
        (dict(steps=1, clip=0.0), "clip must be positive"),
        (dict(steps=1, ema=1.0), r"ema must lie in \[0, 1\)"),
        (dict(steps=1, select="best"), "select must be 'min', 'max' or None, got 'best'"),
        (dict(steps=1, patience=2), "patience needs select"),
        (dict(steps=1, precision="int3"), "precision must be 'fp32', 'bf16', 'fp16'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**arguments)


def test_bad_losses_and_models_are_named():
    x, y = linear_problem()
    data = Batches((x, y), 16)
    with pytest.raises(TypeError, match="must be callable, got Adam"):
        Trainer(steps=1, optimizer=torch.optim.Adam(linear_model().parameters()))
    with pytest.raises(TypeError, match="loss must return a tensor"):
        Trainer(steps=1).fit(linear_model(), lambda model, batch: 1.0, data)
    with pytest.raises(ValueError, match=r"loss must be a scalar, got shape \[16, 2\]"):
        Trainer(steps=1).fit(linear_model(), lambda model, batch: model(batch[0]), data)
    with pytest.raises(ValueError, match="Linear has no parameter that requires a gradient"):
        Trainer(steps=1).fit(linear_model().requires_grad_(False), mse, data)
    with pytest.raises(ValueError, match="select='max' needs evaluate"):
        Trainer(steps=1, select="max").fit(linear_model(), mse, data)
    stranger = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="holds 2 parameters that are not the model's"):
        Trainer(steps=1, optimizer=lambda parameters: torch.optim.SGD([*parameters, *stranger.parameters()], 0.1)).fit(
            linear_model(), mse, data
        )

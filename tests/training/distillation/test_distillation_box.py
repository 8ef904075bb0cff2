"""Stages, their boundary and their resumption; two loops that agree; processes; and what a box refuses."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import box_workers as w

from flambeau.training import CheckpointError, Interrupted
from flambeau.training.distillation import (
    ConfigError,
    DistillBox,
    PathLoss,
    TrainingBox,
    WeightedSumLoss,
    get_box,
    parse_config,
)
from flambeau.training.parallel import run_processes

STAGES = """
train:
  stage1:
    num_epochs: 2
    train_data_loader: {dataset_id: train, kwargs: {batch_size: 8}}
    teacher: {sequential: ["0"], forward_hook: {output: ["0"]}}
    student:
      sequential: ["0", "+wider"]
      adaptations: {wider: {key: Linear, kwargs: {in_features: 4, out_features: 6}}}
      forward_hook: {output: ["+wider"]}
    optimizer: {key: SGD, kwargs: {lr: 0.1, momentum: 0.9}}
    criterion: {key: FitNetLoss, student: "+wider", teacher: "0"}
  stage2:
    num_epochs: 3
    teacher: {forward_hook: {output: ["0"]}}
    student:
      frozen_modules: ["0"]
      forward_hook: {output: ["0"]}
      auxiliary: {regressor: {key: VIDRegressor, kwargs: REGRESSOR, input: "0"}}
    OPTIMIZER
    criterion:
      key: WeightedSumLoss
      kwargs:
        sub_terms:
          ce: {criterion: {key: CrossEntropyLoss}, weight: 1.0}
          vid: {criterion: {key: MSELoss}, student: regressor, teacher: "0", weight: 0.1}
"""
NEW = "optimizer: {key: Adam, kwargs: {lr: 0.01}}\n    scheduler: {key: StepLR, kwargs: {step_size: 1, gamma: 0.5}}"


def student_net():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.2), nn.Linear(4, 3))


def stages(optimizer=NEW):
    text = STAGES.replace("VIDRegressor, kwargs: REGRESSOR", "Linear, kwargs: {in_features: 4, out_features: 6}")
    return parse_config(text.replace("OPTIMIZER", optimizer))


def staged_box(config, **arguments):
    return DistillBox(w.make_net(1), student_net(), w.make_data(24), config, **arguments)


def hook_count(*models):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_stage_boundary_freezes_unfreezes_and_swaps_hooks():
    box = staged_box(stages())
    teacher, student = box.teacher, box.student
    assert len(student[0]._forward_hooks) == 0 and hook_count(student) == 0  # its hook is on the adaptation
    assert len(teacher[0]._forward_hooks) == 1
    before = w.weights(student)
    box.fit()
    after = w.weights(student)
    assert not torch.equal(before["0.weight"], after["0.weight"]) and torch.equal(before["2.weight"], after["2.weight"])
    first = box.stage
    assert box.advance() and box.number == 2
    assert not any(parameter.requires_grad for parameter in student[0].parameters())
    assert all(parameter.requires_grad for parameter in student[2].parameters())
    assert hook_count(first.student) == len(student[0]._forward_hooks) == 1
    assert isinstance(box.optimizer, torch.optim.Adam)
    box.fit()
    ended = w.weights(student)
    assert torch.equal(after["0.weight"], ended["0.weight"]) and torch.equal(after["0.bias"], ended["0.bias"])
    assert not torch.equal(after["2.weight"], ended["2.weight"])
    assert not box.advance()
    assert hook_count(teacher, student, box.stage) == 0
    assert all(parameter.requires_grad for model in (teacher, student) for parameter in model.parameters())


def test_the_teacher_does_not_change_and_runs_in_evaluation_mode():
    box = w.make_box(w.make_config())
    before = w.weights(box.teacher)
    box.stage.train()
    assert not box.teacher.training and box.stage.student.training
    box.teacher.train()
    box.forward_process(*next(box.batches(0)))
    assert not box.teacher.training
    assert not any(name.startswith("teacher") for name in box.stage.state_dict())
    box.run()
    assert same(before, w.weights(box.teacher))


def test_an_optimiser_is_kept_with_its_moments_unless_the_stage_names_one():
    box = staged_box(stages(""))
    box.fit()
    used = box.optimizer
    momentum = used.state[box.student[0].weight]["momentum_buffer"].clone()
    box.section["student"]["frozen_modules"] = []
    box.advance()
    kept = box.optimizer
    assert type(kept) is type(used) and kept is not used and kept.param_groups[0]["momentum"] == 0.9
    assert box.student[0].weight not in kept.state  # frozen in this stage
    config = stages("")
    config["train"]["stage2"]["student"]["frozen_modules"] = []
    box = staged_box(config)
    box.fit()
    box.advance()
    assert torch.equal(box.optimizer.state[box.student[0].weight]["momentum_buffer"], momentum)
    assert box.student[2].weight not in box.optimizer.state
    box.fit()
    assert box.optimizer.state[box.student[2].weight]["momentum_buffer"].abs().sum() > 0
    box = staged_box(stages())
    box.fit()
    box.advance()
    assert isinstance(box.optimizer, torch.optim.Adam) and not box.optimizer.state


def test_a_compiled_student_makes_the_steps_of_a_plain_one():
    plain = w.make_box(w.make_config(epochs=2))
    plain.run()
    compiled = DistillBox(
        w.make_net(1), torch.compile(w.make_net(2), backend="eager"), w.make_data(), w.make_config(epochs=2)
    )
    compiled.run()
    assert same(w.weights(plain.student), w.weights(compiled.student._orig_mod))
    assert hook_count(compiled.student) == 0


class StopIn:
    """A progress that is interrupted in the n-th training at the k-th step."""

    def __init__(self, training, step):
        self.training, self.step = training, step

    def __call__(self, description, total):
        self.training -= 1
        self.left = self.step
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def advance(self, n=1, **values):
        self.left -= n
        if self.training == 0 and self.left == 0:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("optimizer", [NEW, ""])
def test_a_run_that_was_interrupted_in_stage_two_ends_as_one_that_was_not(tmp_path, optimizer):
    config = stages(optimizer)
    whole = staged_box(config, seed=3)
    fits = whole.run()
    with pytest.raises(Interrupted):
        staged_box(config, seed=3).run(folder=tmp_path, progress=StopIn(2, 5))
    again = staged_box(config, seed=3)
    resumed = again.run(folder=tmp_path)
    assert [fit.steps for fit in resumed] == [6, 9]
    assert [[h["loss"] for h in fit.history] for fit in resumed] == [[h["loss"] for h in fit.history] for fit in fits]
    assert same(w.weights(whole.student), w.weights(again.student))
    assert same(w.weights(whole.stage), w.weights(again.stage))  # the auxiliary modules too


def test_a_folder_of_another_teacher_or_loss_is_refused(tmp_path):
    config = stages()
    staged_box(config).run(folder=tmp_path)
    other = DistillBox(w.make_net(9), student_net(), w.make_data(24), config)
    with pytest.raises(CheckpointError, match="teacher_weights"):
        other.run(folder=tmp_path)
    heavier = copy.deepcopy(config)
    heavier["train"]["stage2"]["criterion"]["kwargs"]["sub_terms"]["vid"]["weight"] = 0.2
    with pytest.raises(CheckpointError, match="criterion"):
        staged_box(heavier).run(folder=tmp_path)


def own_loop(box, stop_at=None):
    """Run a box by hand; with `stop_at` (stage, batches), return its state there."""
    while True:
        done = box.batches_seen // len(box.train_data)
        for epoch in range(done, box.num_epochs):
            for position, (x, y, supp) in enumerate(box.batches(epoch)):
                if position < box.batches_seen - epoch * len(box.train_data):
                    continue
                box.post_forward_process(box.forward_process(x, y, supp))
                if stop_at == (box.number, box.batches_seen):
                    return copy.deepcopy(box.state_dict())
        if not box.advance():
            return None


@pytest.mark.parametrize("optimizer", [NEW, ""])
def test_a_loop_of_ones_own_makes_the_trainers_steps_and_resumes(optimizer):
    config = stages(optimizer)
    config["train"]["stage1"]["optimizer"] = {**config["train"]["stage1"]["optimizer"], "max_grad_norm": 0.5}
    nets = [nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    boxes = [DistillBox(w.make_net(1), net, w.make_data(24), config) for net in nets]
    boxes[0].run()
    own_loop(boxes[1])
    assert same(w.weights(nets[0]), w.weights(nets[1]))
    state = own_loop(boxes[2], stop_at=(2, 4))
    torch.manual_seed(8)
    last = DistillBox(
        w.make_net(1), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), w.make_data(24), config
    )
    last.load_state_dict(state)
    own_loop(last)
    assert same(w.weights(nets[0]), w.weights(last.student))
    with pytest.raises(ValueError, match="the state is of stage 2, the box is at"):
        DistillBox(w.make_net(1), student_net(), w.make_data(24), w.make_config()).load_state_dict(state)


def test_accumulation_is_one_larger_batch():
    whole, parts = w.one_step(16), w.one_step(4, accumulate=4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=0)
    large, small = w.trained(None, 16), w.trained(None, 4, accumulate=4)
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def two_processes():
    return run_processes(w.in_two_processes, 2)


def test_hooks_of_a_model_in_ddp_record_bitwise(two_processes):
    for outcome in two_processes:
        assert outcome["hooked"] == {"equal": True, "left": 0}


def test_processes_end_with_one_student_statistics_included(two_processes):
    assert same(two_processes[0]["norm"], two_processes[1]["norm"])


def test_two_processes_make_the_step_of_one(two_processes):
    gradient, single = w.one_step(16), w.trained(None, 8)
    for outcome in two_processes:
        for name, value in gradient.items():
            torch.testing.assert_close(outcome["gradient"][name], value, atol=1e-6, rtol=0)
        for plan in ("dp2", "fsdp2"):
            for name, value in single.items():
                torch.testing.assert_close(outcome[plan][name], value, atol=1e-6, rtol=0)


def test_a_config_is_as_it_was_after_two_uses_and_rates_are_scaled_on_copies(monkeypatch):
    config = w.make_config()
    before = copy.deepcopy(config)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for _ in range(2):
        box = w.make_box(config, adjust_lr=True)
        assert box.optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
        assert box.train_data.batch_size == 32
    assert config == before


def test_boxes_with_procedures_of_their_own_do_not_touch_each_other():
    seen = []

    def skip(box, loss):
        seen.append(loss.item())

    config = w.make_config()
    config["train"]["post_forward_process"] = skip
    first, second = w.make_box(config), w.make_box(w.make_config())
    before, other = w.weights(first.student), w.weights(second.student)
    for box in (first, second):
        for x, y, supp in box.batches(0):
            box.post_forward_process(box.forward_process(x, y, supp))
    assert len(seen) == 2 and same(before, w.weights(first.student))
    assert not same(other, w.weights(second.student))
    assert "post_forward_process" not in vars(DistillBox(w.make_net(1), w.make_net(2), w.make_data(), w.make_config()))
    with pytest.raises(ConfigError, match="post_forward_process: the Trainer has no such moments"):
        w.make_box(config).fit()


CACHE, GRAD = "cache_output", "requires_grad"
MODULE_WISE = """
  optimizer:
    key: SGD
    grad_accum_step: 1
    kwargs: {lr: 0.1}
    module_wise_configs:
      - {module: "2", kwargs: {lr: 0.01}}
      - {module: "0"}
  scheduler: {key: LinearLR, scheduling_step: 1, kwargs: {start_factor: 0.5, end_factor: 1.0, total_iters: 4}}
"""


def test_rates_by_module_and_a_schedule_by_batch():
    text = w.CONFIG.replace(
        "  optimizer: {key: SGD, grad_accum_step: ACCUMULATE, kwargs: {lr: 0.1, momentum: 0.9}}\n", MODULE_WISE[1:]
    )
    config = w.make_config(4, epochs=2, text=text)
    box = w.make_box(config)
    groups = box.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.1]
    assert groups[0]["params"] == list(box.student[2].parameters())
    fit = box.fit()
    assert [h["lr"] for h in fit.history] == pytest.approx([0.01 * f for f in (0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1)])
    only = parse_config("x: [{module: '2', kwargs: {lr: 0.01}}]")["x"]
    config["train"]["optimizer"]["module_wise_configs"] = only
    box = w.make_box(config)
    before = w.weights(box.student)
    box.run()
    after = w.weights(box.student)
    assert torch.equal(before["0.weight"], after["0.weight"]) and not torch.equal(before["2.weight"], after["2.weight"])
    assert all(parameter.requires_grad for parameter in box.student.parameters())


@pytest.mark.parametrize(
    "key, kwargs",
    [
        ("MultiStepLR", {"milestones": [1, 3], "gamma": 0.1}),
        ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.01}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 4}),
    ],
)
def test_schedules_are_those_of_torch_epoch_by_epoch(key, kwargs):
    config = w.make_config(8, epochs=4)
    config["train"]["scheduler"] = {"key": key, "kwargs": kwargs}
    rates = [h["lr"] for h in w.make_box(config).fit().history]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, key)(optimizer, **kwargs)
    expected = []
    for epoch in range(4):
        expected += [optimizer.param_groups[0]["lr"]] * 2
        optimizer.step()
        if epoch < 3:
            scheduler.step()
    assert rates == pytest.approx(expected)


def test_a_config_without_a_teacher_trains_a_single_model():
    text = """
datasets: {}
models: {model: {key: torch.nn.Linear, kwargs: {in_features: 5, out_features: 3}}}
train:
  num_epochs: 2
  train_data_loader: {dataset_id: train, kwargs: {batch_size: 8}}
  model: {}
  optimizer: {key: SGD, kwargs: {lr: 0.1}}
  criterion: {key: CrossEntropyLoss}
"""
    config = parse_config(text)
    config["datasets"] = w.make_data()
    boxes = [get_box(config, "cpu", seed=4) for _ in range(2)]
    assert all(type(box) is TrainingBox and box.teacher is None for box in boxes)
    assert torch.equal(boxes[0].student.weight, boxes[1].student.weight)
    x, y = config["datasets"]["train"]
    before = nn.functional.cross_entropy(boxes[0].student(x), y)
    boxes[0].run()
    assert nn.functional.cross_entropy(boxes[0].student(x), y) < before


class Detector(nn.Module):
    """Returns its own losses in training, as detection models do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x, y):
        logits = self.layer(x)
        return {"classes": nn.functional.cross_entropy(logits, y), "size": logits.square().mean()}


def test_losses_that_the_model_returns_are_weighted():
    config = w.make_config()
    train = config["train"]
    train["student"] = {"forward_proc": "forward_batch_target"}
    train["teacher"] = {}
    train["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"model_term": {"weight": {"classes": 1.0, "size": 0.5}}}}
    box = DistillBox(w.make_net(1), Detector(), w.make_data(), config)
    x, y, supp = next(box.batches(0))
    loss = box.forward_process(x, y, supp)
    expected = box.student(x, y)
    torch.testing.assert_close(loss, expected["classes"] + 0.5 * expected["size"])
    assert set(box.values) == {"loss", "model_classes", "model_size"}


def test_terms_are_registered_trained_and_moved():
    class Weighing(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.register_buffer("bank", torch.zeros(2))

        def forward(self, student_logits, teacher_logits):
            return ((student_logits - teacher_logits) * self.scale).square().mean()

    loss = WeightedSumLoss({"weighing": (PathLoss(Weighing(), ".", "."), 2.0)})
    assert set(loss.state_dict()) == {"terms.weighing.loss.scale", "terms.weighing.loss.bank"}
    assert loss.double().terms["weighing"].loss.bank.dtype == torch.float64
    config = w.make_config()
    config["train"]["criterion"]["kwargs"]["sub_terms"] = {"weighing": {"criterion": Weighing(), "weight": 1.0}}
    box = w.make_box(config)
    box.fit()
    assert not torch.equal(box.stage.criterion.terms["weighing"].loss.scale, torch.ones(3))


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t["student"].update(forward_hook={"output": ["0", "O"]}), "no module 'O'; the nearest paths are"),
        (lambda t: t["student"].update(frozen_modules=["1.2"]), "has no module '1.2'"),
        (lambda t: t["student"].update(sequential=["2"]), "0 does not run: sequential is"),
        (lambda t: t["student"].update(sequential=["2", "0"]), "the order cannot be executed|not the order"),
        (lambda t: t["optimizer"].update(key="SGDD"), "is called 'SGDD'; the nearest names are SGD"),
        (lambda t: t["optimizer"].update(kwargs={"lr": "fast"}), "lr: expected a number, got 'fast'"),
        (lambda t: t["optimizer"].update(grad_accum_step=0.5), "grad_accum_step: expected a whole number"),
        (lambda t: t["optimizer"].update(module_wise_configs=[{"module": "7"}]), "has no module '7'"),
        (lambda t: t.update(scheduler={"key": "ReduceLROnPlateau"}), "needs a metric of each epoch"),
        (lambda t: t.update(scheduler={"key": "StepLR", "kwargs": {"gama": 1}}), "scheduler: StepLR"),
        (lambda t: t["train_data_loader"].update(kwargs={}), "batch_size: expected a whole number"),
        (lambda t: [t[k].update({n: True}) for k, n in (("train_data_loader", CACHE), ("teacher", GRAD))], "is True"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_models_is_refused(change, told):
    config = w.make_config()
    change(config["train"])
    with pytest.raises(ConfigError, match=told):
        w.make_box(config)


def test_logits_of_other_classes_and_features_of_other_shapes_show_both_shapes():
    other = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    box = DistillBox(other, w.make_net(2), w.make_data(), w.make_config())
    with pytest.raises(ValueError, match=r"\[8, 3\] and teacher \[8, 4\]"):
        box.forward_process(*next(box.batches(0)))
    config = w.make_config()
    config["train"]["criterion"]["kwargs"]["sub_terms"]["hint"]["criterion"]["key"] = "FitNetLoss"
    wide = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    box = DistillBox(wide, w.make_net(2), w.make_data(), config)
    with pytest.raises(ValueError, match=r"\[8, 6\] and teacher \[8, 7\]"):
        box.fit()


TRANSFER = """
train:
  stage1:
    num_epochs: 1
    train_data_loader: {dataset_id: train, kwargs: {batch_size: 8}}
    teacher:
      forward_hook: {output: ["0"]}
      auxiliary:
        paraphraser: {key: Linear, kwargs: {in_features: 6, out_features: 2}, input: "0:output"}
        back: {key: Linear, kwargs: {in_features: 2, out_features: 6}, input: paraphraser}
    student: {replace: {key: EmptyModule}}
    optimizer: {key: Adam, kwargs: {lr: 0.1}}
    criterion: {key: MSELoss, teacher: ["back:output"]}
  stage2:
    num_epochs: 1
    teacher:
      forward_hook: {output: ["0"]}
      frozen_modules: [paraphraser]
      auxiliary: {paraphraser: {key: Linear, kwargs: {in_features: 6, out_features: 2}, input: "0:output"}}
    student:
      forward_hook: {output: ["0"]}
      auxiliary: {translator: {key: Linear, kwargs: {in_features: 6, out_features: 2}, input: "0"}}
    optimizer: {key: Adam, kwargs: {lr: 0.1}}
    criterion: {key: L1Loss, student: translator, teacher: paraphraser}
"""


def test_auxiliary_modules_keep_their_weights_from_stage_to_stage():
    class Rebuilds(nn.Module):
        def forward(self, pair):
            return (pair[0] - pair[1].detach()).square().mean()

    config = parse_config(TRANSFER)
    first = config["train"]["stage1"]
    first["criterion"] = {
        "key": "WeightedSumLoss",
        "kwargs": {"sub_terms": {"r": {"criterion": Rebuilds(), "teacher": ["back", "0:output"], "weight": 1.0}}},
    }
    box = w.make_box(config)
    untouched = w.weights(box.student), w.weights(box.teacher)
    before = w.weights(box.stage.teacher.auxiliary)
    losses = [h["loss"] for h in box.fit().history]
    assert (
        losses[-1] < losses[0]
        and same(untouched[0], w.weights(box.student))
        and same(untouched[1], w.weights(box.teacher))
    )
    learned = w.weights(box.stage.teacher.auxiliary)
    assert not same(before, learned)
    box.advance()
    taken = box.stage.teacher.auxiliary
    assert torch.equal(taken.parts["paraphraser"].weight, learned["parts.paraphraser.weight"])
    box.fit()
    assert torch.equal(taken.parts["paraphraser"].weight, learned["parts.paraphraser.weight"])  # frozen here
    assert not same(untouched[0], w.weights(box.student)) and same(untouched[1], w.weights(box.teacher))


class Accelerator:
    """The calls of Hugging Face's Accelerator that a box makes."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def prepare(self, stage, optimizer):
        self.calls.append("prepare")
        return nn.DataParallel(stage), optimizer

    def backward(self, loss):
        self.calls.append("backward")
        loss.backward()

    def clip_grad_norm_(self, parameters, norm):
        self.calls.append("clip")
        nn.utils.clip_grad_norm_(parameters, norm)


def test_an_accelerator_prepares_runs_backward_and_clips():
    config = w.make_config(8)
    config["train"]["optimizer"]["max_grad_norm"] = 1.0
    accelerated, plain = w.make_box(config, accelerator=Accelerator()), w.make_box(config)
    own_loop(plain)
    own_loop(accelerated)
    assert accelerated.accelerator.calls == ["prepare", "backward", "clip", "backward", "clip"]
    assert same(w.weights(plain.student), w.weights(accelerated.student))

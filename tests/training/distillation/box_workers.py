"""What tests of distillation run in processes, and the small trainings that they share."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flambeau.training.distillation import DistillBox, hooks, parse_config

CONFIG = """
models: {teacher_model: {key: x}, student_model: {key: x}}
train:
  num_epochs: EPOCHS
  train_data_loader: {dataset_id: train, kwargs: {batch_size: SIZE, shuffle: False}}
  teacher: {forward_hook: {output: ["0"]}}
  student: {forward_hook: {output: ["0"]}}
  optimizer: {key: SGD, grad_accum_step: ACCUMULATE, kwargs: {lr: 0.1, momentum: 0.9}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        kd: {criterion: {key: KDLoss, kwargs: {temperature: 4.0, alpha: 0.5}}, weight: 1.0}
        hint: {criterion: {key: MSELoss}, student: "0:output", teacher: "0:output", weight: 0.5}
"""


def make_config(size=8, accumulate=1, epochs=1, text=CONFIG):
    return parse_config(
        text.replace("SIZE", str(size)).replace("ACCUMULATE", str(accumulate)).replace("EPOCHS", str(epochs))
    )


def make_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def make_data(count=16):
    generator = torch.Generator().manual_seed(0)
    return {"train": (torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator))}


def make_box(config, **arguments):
    return DistillBox(make_net(1), make_net(2), make_data(), config, **arguments)


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def hooked_ddp():
    net = make_net(0)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected = net[1](net[0](x))
    wrapped = DistributedDataParallel(net)
    with hooks(wrapped, ["1"]) as io:
        wrapped(x)
    left = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in wrapped.modules())
    return {"equal": torch.equal(io["1"]["output"], expected), "left": left}


def trained(plan, size, accumulate=1):
    """The student after a training by the Trainer, alone or under a plan."""
    box = make_box(make_config(size, accumulate, epochs=2))
    box.run(parallel=plan)
    return weights(box.student)


def one_step(size, accumulate=1):
    """The gradient of the student after one step of the box's own loop."""
    box = make_box(make_config(size, accumulate))
    gradients = {}
    step = box.optimizer.step

    def keep(*arguments):
        gradients.update({name: parameter.grad.clone() for name, parameter in box.student.named_parameters()})
        return step(*arguments)

    box.optimizer.step = keep
    for x, y, supp in box.batches(0):
        box.post_forward_process(box.forward_process(x, y, supp))
        if gradients:
            return gradients


def with_batch_norm():
    torch.manual_seed(2)
    student = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    box = DistillBox(make_net(1), student, make_data(), make_config(8))
    box.run(parallel="dp2")
    return weights(student)


def in_two_processes():
    plans = {plan: trained(plan, 8) for plan in ("dp2", "fsdp2")}
    return {"gradient": one_step(16), "norm": with_batch_norm(), "hooked": hooked_ddp(), **plans}

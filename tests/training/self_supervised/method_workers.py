"""What `test_contrastive_methods` runs in two processes."""

import torch
import torch.distributed as dist
from torch import nn

from flambeau.objectives.sinkhorn import sinkhorn
from flambeau.training.self_supervised import MoCoV2, SimCLR, SwAV


def encoder():
    """No BatchNorm, so that a batch may be divided."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2))


def views():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(8, 1, 12, 12, generator=generator) for _ in range(2)]


def moco(group=None):
    return MoCoV2(encoder(), input_shape=(1, 12, 12), dim=4, queue=16, momentum=0.9, group=group)


def train(method, batches):
    """Losses, the queue, and the gradient of the first weights after two steps of plain SGD."""
    losses = []
    for batch in batches:
        loss = method(batch)["loss"]
        method.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    if dist.is_initialized():
                        dist.all_reduce(p.grad)
                        p.grad /= dist.get_world_size()
                    p -= 0.1 * p.grad
    return losses


def swav_scores():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(9))


def simclr(group=None):
    method = SimCLR(encoder(), input_shape=(1, 12, 12), dim=4, group=group)
    method.encoder[1] = nn.Linear(8, 4).requires_grad_()
    with torch.no_grad():
        method.encoder[1].weight.copy_(torch.linspace(-1, 1, 32).view(4, 8))
        method.encoder[1].bias.zero_()
    return method


def swav(group=None):
    method = SwAV(encoder(), input_shape=(1, 12, 12), dim=4, prototypes=5, frozen_steps=1, hidden=4, group=group)
    method.encoder[1] = nn.Identity()
    torch.manual_seed(4)
    method.prototypes = nn.Linear(8, 5, bias=False)
    return method


def in_a_process():
    group, rank = dist.group.WORLD, dist.get_rank()
    own = [view[4 * rank : 4 * rank + 4] for view in views()]
    found = {}
    for name, build in (("moco", moco), ("simclr", simclr), ("swav", swav)):
        method = build(group)
        found[f"{name} losses"] = train(method, [own, own[::-1]])
        found[f"{name} weight"] = next(method.parameters()).detach()
        if name == "moco":
            found["queue"] = method.queue.vectors
    found["codes"] = sinkhorn(swav_scores()[4 * rank : 4 * rank + 4], group=group)
    return found


def joined():
    """The same on one process with the whole batch."""
    found = {}
    for name, build in (("moco", moco), ("simclr", simclr), ("swav", swav)):
        method = build()
        found[f"{name} losses"] = train(method, [views(), views()[::-1]])
        found[f"{name} weight"] = next(method.parameters()).detach()
        if name == "moco":
            found["queue"] = method.queue.vectors
    found["codes"] = sinkhorn(swav_scores())
    return found

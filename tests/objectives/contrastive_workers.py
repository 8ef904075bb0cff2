"""What the tests of contrastive losses run in processes."""

import torch
import torch.distributed as dist

from flambeau.objectives.contrastive import info_nce, nt_xent


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 5, generator=generator)


def both_losses():
    q, k = batch()
    rank = dist.get_rank()
    out = {}
    for name, loss in (("info_nce", info_nce), ("nt_xent", nt_xent)):
        a, b = (t[4 * rank : 4 * rank + 4].clone().requires_grad_() for t in (q, k))
        value = loss(a, b, temperature=0.4, group=dist.group.WORLD)
        value.backward()
        out |= {name: value.item(), f"{name} gradients": [a.grad, b.grad]}
    return out

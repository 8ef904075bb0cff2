"""Functions that the tests of the launcher run in processes."""

import time

import torch.distributed as dist

from flambeau.training.parallel import MeshSpec


def meshes(argument):
    mesh = MeshSpec(dp_shard=-1, tp=2).build("cpu")
    ranks = {name: view.mesh.tolist() for name, view in (("tp", mesh["tp"]), ("batch", mesh.batch))}
    return {"rank": dist.get_rank(), "argument": argument, **ranks}


def meshes_of_one():
    return MeshSpec().build("cpu")["tp"].size()


def second_fails():
    if dist.get_rank() == 1:
        raise ValueError("the second rank does not like this")
    dist.barrier()


def hang():
    time.sleep(60)

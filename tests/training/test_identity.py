import json
from functools import partial

import torch
from torch import nn

from flambeau.data import Batches
from flambeau.training import WarmupCosine
from flambeau.training.identity import describe, differences


class Part:
    def __init__(self, rate, inner=None):
        self.rate = rate
        self.inner = inner


def test_everything_becomes_json_and_stays_the_same():
    loop = Part(1.0)
    loop.inner = loop
    value = {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "schedule": WarmupCosine(5),
        "function": describe,
        "data": Batches((torch.zeros(9, 2), torch.zeros(9)), 3),
        "model": nn.Linear(2, 2),
        "tensor": torch.zeros(3),
        "long": list(range(1000)),
        "loop": loop,
        "device": torch.device("cpu"),
    }
    described = describe(value)
    assert json.loads(json.dumps(described)) == described == describe(value)
    assert described["optimizer"] == {"type": "torch.optim.sgd.SGD", "lr": 0.1, "momentum": 0.9}
    assert described["schedule"]["warmup"] == 5 and described["data"]["batch_size"] == 3
    assert described["function"] == "flambeau.training.identity.describe" and described["long"] == "list of 1000"


def test_differences_are_told_by_path():
    before, now = describe({"part": Part(1.0, Part(2))}), describe({"part": Part(1.0, Part(3))})
    assert differences(before, before) == []
    assert differences(before, now) == ["part.inner.rate was 2 and is 3"]
    assert differences({"a": 1}, {"b": 1}) == ["a was 1 and is None", "b was None and is 1"]

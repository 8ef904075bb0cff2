"""Turn a static training program into a search space and let evolution decide it."""

from functools import partial

import torch
from torch import nn

from flambeau.data import Batches, breast_cancer
from flambeau.search import sample
from flambeau.search.algorithms import RegularizedEvolution
from flambeau.symbolic import floatv, oneof, symbolize
from flambeau.training import Trainer

table = breast_cancer()
x = (table.features - table.features.mean(0)) / table.features.std(0)
train, valid = (x[:400], table.target[:400]), (x[400:], table.target[400:])


def program(width: int = 32, activation: nn.Module = symbolize(nn.ReLU)(), rate: float = 1e-3) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, width), activation, nn.Linear(width, 2))
    trainer = Trainer(steps=100, optimizer=partial(torch.optim.Adam, lr=rate))
    trainer.fit(model, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), Batches(train, 32))
    return (model(valid[0]).argmax(1) == valid[1]).float().mean().item()


space = symbolize(program)(
    width=oneof([8, 32, 128]),
    activation=oneof([symbolize(nn.ReLU)(), symbolize(nn.Tanh)()]),
    rate=floatv(1e-4, 1e-1, scale="log"),
)
best = (0.0, None)
for value, feedback in sample(space, RegularizedEvolution(population=6, tournament=3), n=16):
    accuracy = value.build()
    feedback(accuracy)
    best = max(best, (accuracy, value), key=lambda found: found[0])
print(f"validation accuracy {best[0]:.3f} with {dict(best[1].args)}")

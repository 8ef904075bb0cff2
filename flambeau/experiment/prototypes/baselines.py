"""Plain classifiers to stand beside a new one: a linear head, nearest neighbours, and prototypes in input space."""

from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.data import Batches
from flambeau.data.labelled import LabelledCases
from flambeau.nn.distances import nearest
from flambeau.nn.kmeans import kmeans
from flambeau.training import Trainer
from flambeau.training.progress import Progress


def linear_head_accuracies(
    encoder: nn.Module,
    latent_dim: int,
    cases: LabelledCases,
    batches: Batches,
    trainer: Trainer,
    *,
    neighbours: int = 5,
    folder: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Test accuracy of ``encoder`` trained with a linear head, and of k nearest neighbours on its codes."""
    device = next(encoder.parameters()).device
    torch.manual_seed(seed)
    network = nn.Sequential(encoder, nn.Linear(latent_dim, len(cases.classes), device=device))
    trainer.fit(network, _cross_entropy, batches, folder=folder, progress=progress, seed=seed)
    with torch.no_grad():
        train, test = (
            torch.cat([encoder(part.to(device)) for part in x.split(512)]) for x in (cases.train_x, cases.test_x)
        )
        linear = network[1](test).argmax(1).cpu()
    near = KNeighborsClassifier(neighbours).fit(train.cpu(), cases.train_y).predict(test.cpu())
    return _share_equal(linear, cases.test_y), _share_equal(torch.from_numpy(near), cases.test_y)


def kmeans_accuracy(cases: LabelledCases, count: int, seed: int = 0) -> float:
    """Test accuracy of the nearest of ``count`` k-means centres of the inputs, named by the majority of their cases."""
    train, test = cases.train_x.flatten(1), cases.test_x.flatten(1)
    centres = kmeans(train, min(count, len(train)), generator=torch.Generator().manual_seed(seed))
    votes = F.one_hot(cases.train_y, len(cases.classes)).float()
    owner = nearest(train, centres)[1][:, 0]
    label = torch.zeros(len(centres), votes.shape[1]).index_add_(0, owner, votes).argmax(1)
    return _share_equal(label[nearest(test, centres)[1][:, 0]], cases.test_y)


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _share_equal(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from flambeau.experiment.representation.evaluation import (
    accuracy,
    auc,
    bootstrap_interval,
    features,
    linear_probe,
    nearest_neighbours,
)


def clouds(n, seed, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.eye(3)[y] * 2 + spread * torch.randn(n, 3, generator=generator), y


def test_probe_and_neighbours_separate_what_is_separable_and_nothing_else():
    (x, y), (tx, ty) = clouds(90, 0), clouds(300, 1)
    for method in (linear_probe, nearest_neighbours):
        assert accuracy(method(x, y, tx), ty) > 0.9
        assert accuracy(method(torch.randn(90, 3), y, torch.randn(300, 3)), ty) < 0.5


def test_the_probe_does_not_depend_on_the_units_of_a_feature():
    (x, y), (tx, ty) = clouds(90, 0), clouds(300, 1)
    units = torch.tensor([1e-3, 1.0, 1e3])
    assert accuracy(linear_probe(x * units, y, tx * units), ty) == accuracy(linear_probe(x, y, tx), ty)


def test_one_case_a_class_is_enough_for_a_probe():
    (x, y), (tx, ty) = clouds(3, 0, 0.05), clouds(300, 1)
    assert accuracy(linear_probe(x, y, tx), ty) > 0.8


def test_neighbours_vote_by_similarity():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    y = torch.tensor([0, 0, 1])
    votes = nearest_neighbours(x, y, torch.tensor([[1.0, 1.0]]), neighbours=3)
    weights = torch.exp(torch.cosine_similarity(x, torch.tensor([[1.0, 1.0]])) / 0.07).numpy()
    assert votes[0] == pytest.approx([(weights[0] + weights[1]) / weights.sum(), weights[2] / weights.sum()], rel=1e-4)


def test_features_are_those_of_evaluation_mode_and_the_mode_is_kept():
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5)).train()
    images = torch.randn(5, 1, 6, 6)
    found = features(encoder, images, batch_size=2)
    torch.testing.assert_close(found, encoder[0](images).flatten(1).detach())
    assert encoder.training


def test_auc_is_the_mean_over_classes_against_the_rest():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 200)
    labels = torch.arange(200) % 3
    one = [roc_auc_score((labels == c).numpy(), probabilities[:, c]) for c in range(3)]
    assert auc(probabilities, labels) == pytest.approx(np.mean(one))
    assert auc(probabilities[:, :2], labels % 2) == pytest.approx(roc_auc_score(labels % 2, probabilities[:, 1]))


def test_the_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        labels = torch.from_numpy(random.integers(0, 2, 150))
        right = random.random(150) < 0.8
        chosen = np.where(right, labels.numpy(), 1 - labels.numpy())
        low, high = bootstrap_interval(accuracy, np.eye(2)[chosen], labels, repeats=200, seed=trial)
        covered += low <= 0.8 <= high
    assert 51 <= covered <= 60


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="train_x holds values that are not finite"):
        linear_probe(torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="one class only"):
        linear_probe(torch.ones(2, 1), torch.zeros(2, dtype=torch.long), torch.ones(1, 1))
    with pytest.raises(ValueError, match="too rare"):
        bootstrap_interval(accuracy, np.eye(500)[:400], torch.arange(400), repeats=10)

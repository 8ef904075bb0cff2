"""Distillation of self-supervision against NumPy in float64."""

import numpy as np
import pytest
import torch

from flambeau.objectives.distillation import SSKDLoss, SSKDPretextLoss

IMAGES, C = 6, 5


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def similarities(embedding):
    """[transformed, originals], with original i in row 4i of the batch."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    moved = [unit[row] for row in range(len(unit)) if row % 4]
    return np.array([[a @ unit[4 * i] for i in range(len(unit) // 4)] for a in moved])


def kl(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(1)


def kept(teacher, truth, ratio):
    """Rows in which the teacher is right, and those of the others in which the truth ranks highest."""
    ranks = [int((row > row[k]).sum()) for row, k in zip(teacher, truth)]
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], i))
    wrong = sum(rank > 0 for rank in ranks)
    return order[: len(ranks) - wrong + int(ratio * wrong)]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(4 * IMAGES, C, generator=generator, dtype=torch.float64) for _ in range(2)]
    embeddings = [torch.randn(4 * IMAGES, d, generator=generator, dtype=torch.float64) for d in (7, 9)]
    return *logits, *embeddings, torch.randint(C, (IMAGES,), generator=generator)


def test_pretext(batch):
    table = similarities(batch[3].numpy())
    origin = np.repeat(np.arange(IMAGES), 3)
    expected = -np.log(softmax(table)[np.arange(3 * IMAGES), origin]).mean()
    np.testing.assert_allclose(SSKDPretextLoss()(batch[3]).item(), expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_all_terms(batch, ratio):
    student, teacher, ours, theirs, y = (x.numpy() for x in batch)
    weights = (0.1, 0.9, 10.0, 2.7)
    ce = -np.log(softmax(student[::4])[np.arange(IMAGES), y]).mean()
    moved = np.arange(4 * IMAGES) % 4 != 0
    s, t = similarities(ours), similarities(theirs)
    rows = kept(t, np.repeat(np.arange(IMAGES), 3), 0.75)
    similar = kl(s, t, 0.5)[rows].mean()
    rows = kept(teacher[moved], np.repeat(y, 3), ratio)
    assert len(rows) < 3 * IMAGES or ratio == 1.0
    classes = kl(student[moved], teacher[moved], 4.0)[rows].mean()
    terms = (ce, kl(student[::4], teacher[::4], 4.0).mean(), similar, classes)
    loss = SSKDLoss(transformed_keep=ratio, weights=weights)
    ours = loss((batch[0], batch[2]), (batch[1], batch[3]), batch[4])
    np.testing.assert_allclose(ours.item(), sum(w * term for w, term in zip(weights, terms)), rtol=1e-6)


def test_nothing_trusted_is_zero():
    teacher = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    student = torch.randn(4, 2, requires_grad=True)
    loss = SSKDLoss(transformed_keep=0.0, weights=(0, 0, 0, 1))
    value = loss((student, student), (teacher, teacher), torch.tensor([1]))
    value.backward()
    assert value.item() == 0 and student.grad.abs().max() == 0


def test_bad_input(batch):
    student, teacher, ours, theirs, y = batch
    loss = SSKDLoss()
    with pytest.raises(ValueError, match="4 versions"):
        SSKDPretextLoss()(theirs[:6])
    with pytest.raises(ValueError, match=r"\[24, 5\] and teacher \[24, 4\]"):
        loss((student, ours), (teacher[:, :4], theirs), y)
    with pytest.raises(ValueError, match="one batch size"):
        loss((student, ours[:20]), (teacher, theirs), y)
    with pytest.raises(ValueError, match=r"y: got \[5\]"):
        loss((student, ours), (teacher, theirs), y[:5])
    for wrong in (
        dict(temperature=0.0),
        dict(similarity_temperature=-1.0),
        dict(transformed_keep=1.5),
        dict(weights=(1, 1)),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SSKDLoss(**wrong)

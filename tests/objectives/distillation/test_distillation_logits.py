"""Losses on class predictions against NumPy in float64, their limits, and what they refuse."""

import numpy as np
import pytest
import torch

from flambeau.objectives.distillation import (
    DISTLoss,
    DISTPlusLoss,
    KDLoss,
    LogitStdKDLoss,
    SKDDirectionLoss,
    SKDInstanceLoss,
    TfKDLoss,
)

B, C = 8, 5


def softmax(z, axis=1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def kl(student, teacher, temperature):
    """Per sample: sum over classes of p_t log(p_t / p_s)."""
    ps, pt = softmax(student / temperature), softmax(teacher / temperature)
    return (pt * np.log(pt / ps)).sum(1)


def ce(student, y):
    return -np.log(np.take_along_axis(softmax(student), y[:, None], 1)).squeeze(1)


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(B, C, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(C, (B,), generator=generator)


def assert_close(ours, reference):
    np.testing.assert_allclose(ours.item(), reference, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha, beta", [(0.5, None), (0.0, None), (1.0, None), (1.0, 2.5), (0.3, 0.0)])
def test_kd(logits, temperature, alpha, beta):
    student, teacher, y = logits
    soft = temperature**2 * kl(student.numpy(), teacher.numpy(), temperature).mean()
    hard = ce(student.numpy(), y.numpy()).mean()
    weight = 1 - alpha if beta is None else beta
    loss = KDLoss(temperature, alpha, beta)
    assert_close(loss(student, teacher, y), alpha * hard + weight * soft)
    # without labels the squared temperature stays, and so does the weight of the soft term
    assert_close(loss(student, teacher), weight * soft)


def test_kd_of_dense_logits_is_the_mean_over_positions(logits):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, C, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.randint(C, (2, 3, 4), generator=generator)
    y[0, 0, :2] = 255
    s, t = (x.movedim(1, -1).reshape(-1, C).numpy() for x in (student, teacher))
    labels = y.reshape(-1).numpy()
    hard = ce(s[labels != 255], labels[labels != 255]).mean()
    assert_close(KDLoss(2.0, 0.4, ignore_index=255)(student, teacher, y), 0.4 * hard + 0.6 * 4 * kl(s, t, 2.0).mean())


def test_kd_takes_unlabelled_samples_and_soft_labels(logits):
    student, teacher, y = logits
    some = y.clone()
    some[:5] = -100
    soft = 16 * kl(student.numpy(), teacher.numpy(), 4.0).mean()
    hard = ce(student[5:].numpy(), y[5:].numpy()).mean()
    assert_close(KDLoss()(student, teacher, some), 0.5 * hard + 0.5 * soft)
    assert_close(KDLoss()(student, teacher, torch.full_like(y, -100)), 0.5 * soft)
    one_hot = torch.nn.functional.one_hot(y, C).double()
    torch.testing.assert_close(KDLoss()(student, teacher, one_hot), KDLoss()(student, teacher, y))


def test_kd_at_high_temperature_matches_logits():
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(B, C, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = (z - z.mean(1, keepdim=True) for z in (student, teacher))
    y = torch.randint(C, (B,), generator=generator)
    student.requires_grad_()
    alpha, beta = 0.3, 0.7
    (gradient,) = torch.autograd.grad(KDLoss(1e3, alpha)(student, teacher, y), student)
    (hard,) = torch.autograd.grad(torch.nn.functional.cross_entropy(student, y), student)
    limit = alpha * hard + beta * (student - teacher).detach() / (B * C)
    assert (gradient - limit).norm() / limit.norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_kd_is_finite_for_extreme_logits_of_any_type(dtype):
    student = torch.tensor([[6e4, -6e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = KDLoss(1.0)(student, -student.detach(), torch.tensor([1]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_logit_standardisation(logits):
    student, teacher, y = logits
    first, second = (
        (z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True))
        for z in (student.numpy(), teacher.numpy())
    )
    expected = 0.3 * ce(student.numpy(), y.numpy()).mean() + 0.7 * 4 * kl(first, second, 2.0).mean()
    assert_close(LogitStdKDLoss(2.0, 0.3)(student, teacher, y), expected)
    # shift and scale of the teacher do not count
    torch.testing.assert_close(LogitStdKDLoss()(student, 3 * teacher + 1), LogitStdKDLoss()(student, teacher))


def test_teacher_free(logits):
    student, _, y = logits
    virtual = np.full((B, C), 0.01 / (C - 1))
    virtual[np.arange(B), y.numpy()] = 0.99
    soft = (softmax(virtual / 20) * np.log(softmax(virtual / 20) / softmax(student.numpy()))).sum(1).mean()
    assert_close(TfKDLoss(20.0, 0.1)(student, y), 0.9 * ce(student.numpy(), y.numpy()).mean() + 0.1 * soft)


@pytest.mark.parametrize("shape", [(B, C), (2, C, 3, 2)])
def test_dist(shape):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    ps, pt = (softmax(x.movedim(1, -1).reshape(-1, C).numpy() / 4) for x in (student, teacher))
    inter = np.mean([1 - pearson(a, b) for a, b in zip(ps, pt)])
    intra = np.mean([1 - pearson(a, b) for a, b in zip(ps.T, pt.T)])
    assert_close(DISTLoss(2.0, 3.0, temperature=4.0)(student, teacher), 16 * (2 * inter + 3 * intra))


def test_dist_plus_is_a_distance():
    generator = torch.Generator().manual_seed(4)
    (zs, zt), (fs, ft) = (
        [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        for shape in ((B, C), (B, 6, 3, 2))
    )
    s, t = fs.numpy(), ft.numpy()
    channels = np.mean(
        [1 - pearson(s[b, :, i, j], t[b, :, i, j]) for b in range(B) for i in range(3) for j in range(2)]
    )
    s, t = s.sum(1), t.sum(1)
    positions = np.mean([1 - pearson(s[:, i, j], t[:, i, j]) for i in range(3) for j in range(2)])
    expected = DISTLoss()(zs, zt).item() + 0.5 * channels + 0.25 * positions
    loss = DISTPlusLoss(iota=0.5, kappa=0.25)
    assert_close(loss((zs, fs), (zt, ft)), expected)
    assert abs(loss((zt, ft), (2 * zt.log_softmax(1) / 2, 3 * ft + 1)).item()) < 1e-9


def test_streamlined(logits):
    student, teacher, _ = logits
    assert_close(SKDInstanceLoss(4.0)(student, teacher), kl(student.numpy(), teacher.numpy(), 4.0).mean())
    grams = [(z / np.linalg.norm(z, axis=1, keepdims=True)) for z in (student.numpy(), teacher.numpy())]
    difference = grams[0] @ grams[0].T - grams[1] @ grams[1].T
    inverse = np.linalg.inv(np.cov(difference, rowvar=False) + 0.1 * np.eye(B))
    assert_close(SKDDirectionLoss(0.1)(student, teacher), np.mean([np.sqrt(d @ inverse @ d) for d in difference]))
    same = teacher.clone().requires_grad_()
    loss = SKDDirectionLoss()(same, teacher)
    loss.backward()
    assert loss.item() == 0 and same.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss", [KDLoss, LogitStdKDLoss, SKDInstanceLoss, TfKDLoss, lambda temperature: DISTLoss(temperature=temperature)]
)
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(loss, temperature):
    with pytest.raises(ValueError, match="temperature"):
        loss(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_needs_beta(alpha):
    for loss in (KDLoss, LogitStdKDLoss):
        with pytest.raises(ValueError, match="alpha"):
            loss(alpha=alpha)
    assert KDLoss(alpha=2.0, beta=1.0).beta == 1.0
    with pytest.raises(ValueError, match="beta"):
        KDLoss(alpha=0.5, beta=-1.0)


@pytest.mark.parametrize("loss", [KDLoss(), LogitStdKDLoss(), SKDInstanceLoss(), SKDDirectionLoss(), DISTLoss()])
def test_class_counts_must_agree(loss):
    with pytest.raises(ValueError, match=r"\[4, 10\].*\[4, 100\]"):
        loss(torch.zeros(4, 10), torch.zeros(4, 100))


def test_one_sample_cannot_be_correlated():
    for loss in (DISTLoss(), SKDDirectionLoss()):
        with pytest.raises(ValueError, match="at least 2"):
            loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="classes > 1"):
        TfKDLoss()(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))

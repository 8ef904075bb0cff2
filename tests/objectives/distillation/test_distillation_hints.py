"""Losses on features against NumPy in float64, and what they refuse."""

import numpy as np
import pytest
import torch

from flambeau.objectives.distillation import (
    ABLoss,
    AffinityLoss,
    AttentionTransfer,
    FitNetLoss,
    FSPLoss,
    FTLoss,
    HierarchicalContextLoss,
    KTALoss,
    PADL2Loss,
    RegularizationLoss,
    SRDLoss,
    VIDLoss,
)

SHAPE = (4, 6, 5, 3)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def assert_close(ours, reference):
    np.testing.assert_allclose(ours.item(), reference, rtol=1e-6)


def test_fitnet():
    student, teacher = draw(*SHAPE)
    assert_close(FitNetLoss()(student, teacher), np.mean((student.numpy() - teacher.numpy()) ** 2))


def test_attention_transfer_in_both_modes_and_with_other_channels():
    student, teacher = draw(*SHAPE)[0], draw(4, 9, 5, 3, seed=1)[0]
    maps = []
    for x in (student.numpy(), teacher.numpy()):
        energy = (x**2).sum(1).reshape(4, -1)
        maps.append(energy / np.sqrt((energy**2).sum(1, keepdims=True)))
    difference = maps[0] - maps[1]
    assert_close(AttentionTransfer()(student, teacher), np.mean(difference**2))
    assert_close(AttentionTransfer("paper")(student, teacher), np.sqrt((difference**2).sum(1)).mean())


def test_flow_of_solution():
    first, second = draw(4, 6, 4, 4), draw(4, 7, 2, 2, seed=1)
    flows = []
    for a, b in zip(first, second):
        pooled = a.numpy().reshape(4, 6, 2, 2, 2, 2).max((3, 5)).reshape(4, 6, 4)
        flows.append(np.einsum("bip,bjp->bij", pooled, b.numpy().reshape(4, 7, 4)) / 4)
    loss = FSPLoss()((first[0], second[0]), (first[1], second[1]))
    assert_close(loss, ((flows[0] - flows[1]) ** 2).sum((1, 2)).mean())


@pytest.mark.parametrize("p, q", [(1, 2), (2, 2), (3, 1)])
def test_factor_transfer_and_knowledge_adaptation(p, q):
    student, teacher = draw(*SHAPE)
    s, t = (x.numpy().reshape(4, -1) for x in (student, teacher))
    s, t = (x / (np.abs(x) ** q).sum(1, keepdims=True) ** (1 / q) for x in (s, t))
    expected = np.abs(s - t).mean() if p == 1 else ((np.abs(s - t) ** p).sum(1) ** (1 / p)).mean()
    assert_close(KTALoss(p, q)(student, teacher), expected)
    if q == 2:
        assert_close(FTLoss(p)(student, teacher), expected)


def test_affinity():
    student, teacher = draw(*SHAPE)
    student[0, 0] = 0  # a channel that is off
    total = np.zeros(4)
    for b in range(4):
        for channel in range(6):
            s, t = student[b, channel].numpy().ravel(), teacher[b, channel].numpy().ravel()
            s, t = s / max(np.linalg.norm(s), 1e-300), t / np.linalg.norm(t)
            total[b] += np.linalg.norm(np.outer(s, s) - np.outer(t, t)) / 15
    assert_close(AffinityLoss()(student, teacher), total.mean())
    assert AffinityLoss()(teacher, -2 * teacher).item() < 1e-12


def test_activation_boundaries():
    student, teacher = draw(*SHAPE)
    s, t = student.numpy(), teacher.numpy()
    active = np.maximum(0, 0.5 - s) ** 2 * (t > 0) + np.maximum(0, 0.5 + s) ** 2 * (t <= 0)
    assert_close(ABLoss(0.5)(student, teacher), active.sum() / 4)


@pytest.mark.parametrize("height, sizes", [(8, (4, 2, 1)), (4, (2, 1)), (1, ())])
def test_hierarchical_context(height, sizes):
    student, teacher = draw(3, 2, height, height)
    s, t = student.numpy(), teacher.numpy()
    value, weight, total = np.mean((s - t) ** 2), 1.0, 1.0
    for size in sizes:
        cells = height // size
        pooled = [x.reshape(3, 2, size, cells, size, cells).mean((3, 5)) for x in (s, t)]
        weight /= 2
        total += weight
        value += weight * np.mean((pooled[0] - pooled[1]) ** 2)
    assert_close(HierarchicalContextLoss()(student, teacher), value / total)


def test_srd():
    student, teacher = draw(4, 6)
    assert_close(SRDLoss(4.0)(student, teacher), np.log((np.abs(student.numpy() - teacher.numpy()) ** 4).sum()))
    same = teacher.clone().requires_grad_()
    loss = SRDLoss()(same, teacher)
    loss.backward()
    assert loss.isfinite() and same.grad.isfinite().all()


def test_regularization():
    student, _ = draw(*SHAPE)
    assert_close(RegularizationLoss()(student), np.abs(student.numpy()).sum())
    assert_close(RegularizationLoss(2)(student), np.sqrt((student.numpy() ** 2).sum()))


def test_variational_information():
    student, teacher = draw(*SHAPE)
    variance = torch.rand(1, 6, 1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5
    s, t, v = student.numpy(), teacher.numpy(), variance.numpy()
    assert_close(VIDLoss()((student, variance), teacher), np.mean(0.5 * ((t - s) ** 2 / v + np.log(v))))


def test_prime_aware():
    student, teacher = draw(4, 6, 1, 1)
    log_variance = draw(4, 6, seed=1)[0]
    s, t, v = student.numpy().reshape(4, 6), teacher.numpy().reshape(4, 6), log_variance.numpy()
    expected = np.mean((t - s) ** 2 / (0.1 + np.exp(v)) + v)
    assert_close(PADL2Loss(0.1)((student, log_variance), teacher), expected)
    # eps is kept in half precision, where exp(v) + 1e-6 would round to exp(v) and exp(v) to 0
    half = PADL2Loss()((torch.ones(1, 1).half(), torch.full((1, 1), -20.0).half()), torch.zeros(1, 1).half())
    np.testing.assert_allclose(half.item(), 1 / (1e-6 + np.exp(-20.0)) - 20, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [FitNetLoss(), FTLoss(), KTALoss(), AffinityLoss(), ABLoss(), HierarchicalContextLoss(), SRDLoss()]
)
def test_other_shapes_are_both_printed(loss):
    with pytest.raises(ValueError, match=r"student \[2, 3, 4, 4\] and teacher \[2, 5, 4, 4\].*adaptation"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


def test_shapes_of_losses_on_pairs():
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and teacher \[2, 3, 2, 2\]"):
        AttentionTransfer()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and teacher \[2, 4, 4, 4\]"):
        VIDLoss()((torch.zeros(2, 3, 4, 4), torch.ones(1)), torch.zeros(2, 4, 4, 4))
    with pytest.raises(ValueError, match=r"\[2, 3\] and teacher \[2, 4\]"):
        PADL2Loss()((torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 4, 1, 1))
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\[2, 3, 3\] and teacher \[2, 3, 5\]"):
        FSPLoss()((maps, maps), (maps, torch.zeros(2, 5, 4, 4)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionTransfer("sum"),
        lambda: ABLoss(0.0),
        lambda: FTLoss(0),
        lambda: KTALoss(1, -1),
        lambda: HierarchicalContextLoss((4, 0)),
        lambda: SRDLoss(0.0),
        lambda: PADL2Loss(0.0),
        lambda: RegularizationLoss(0),
    ],
)
def test_bad_options(make):
    with pytest.raises(ValueError, match="got"):
        make()


@pytest.mark.parametrize("loss", [AttentionTransfer(), AttentionTransfer("paper"), FTLoss(), FTLoss(2), AffinityLoss()])
def test_features_of_zeros_have_ordinary_gradients(loss):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss(student, torch.rand(2, 3, 4, 4)).backward()
    assert student.grad.abs().max() < 10

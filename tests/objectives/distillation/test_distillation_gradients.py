"""Gradients of the losses against finite differences, on float64."""

import pytest
import torch

from flambeau.objectives.distillation import (
    AffinityLoss,
    AttentionTransfer,
    CCKDLoss,
    DISTLoss,
    DISTPlusLoss,
    ICKDLoss,
    KDLoss,
    KTALoss,
    LogitStdKDLoss,
    PADL2Loss,
    PKTLoss,
    RKDAngleLoss,
    RKDDistanceLoss,
    SKDDirectionLoss,
    SPKDLoss,
    SRDLoss,
    TfKDLoss,
    VIDLoss,
)


def draw(*shape):
    draw.seed += 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw.seed), dtype=torch.float64)


draw.seed = 0
Y = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: KDLoss(3.0, 0.4)(s, t, Y),
        lambda s, t: KDLoss(3.0, 0.0)(s, t),
        lambda s, t: LogitStdKDLoss()(s, t, Y),
        lambda s, t: TfKDLoss()(s, Y) + 0 * t.sum(),
        DISTLoss(temperature=2.0),
        SKDDirectionLoss(),
        RKDDistanceLoss(),
        RKDAngleLoss(),
        SPKDLoss(),
        CCKDLoss(),
        PKTLoss(),
        SRDLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_vectors(loss):
    """Both sides: heads on the teacher's side are trained through the loss too."""
    student, teacher = draw(4, 3).requires_grad_(), draw(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize(
    "loss",
    [AttentionTransfer(), AttentionTransfer("paper"), KTALoss(), KTALoss(2), AffinityLoss(), ICKDLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_maps(loss):
    student, teacher = draw(2, 3, 2, 2).requires_grad_(), draw(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))


def test_variational_and_paired():
    mean, teacher = draw(2, 3, 2, 2).requires_grad_(), draw(2, 3, 2, 2).requires_grad_()
    variance = (draw(1, 3, 1, 1).square() + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v, t: VIDLoss()((m, v), t), (mean, variance, teacher))
    log_variance = draw(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v, t: PADL2Loss()((m, v), t), (mean, log_variance, teacher))
    logits = draw(2, 3).requires_grad_(), draw(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, f, u, t: DISTPlusLoss()((z, f), (u, t)), (logits[0], mean, logits[1], teacher)
    )

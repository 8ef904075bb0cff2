"""Distillation of relations: how samples, or channels, lie to each other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import check_positive, exact_products, same_batch, unit, wide


class RKDDistanceLoss(nn.Module):
    """Huber difference of the distances between samples, each model's in units of its mean distance.

    RKD-D (Park et al. 2019, arXiv 1904.05068, equations 4-7). The mean distance is that of the pairs that lie apart;
    the loss is the mean over all batch² pairs, as in the authors' code.

    student and teacher: [batch, ...] with dims of their own. Raises ValueError for other batch sizes, with both shapes,
    and for fewer than two samples.
    """

    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        relative = []
        for x in same_batch(student, teacher, at_least=2):
            # not by the product of matrices: |a|² + |b|² - 2ab loses the digits of near pairs
            distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
            mean = distances.sum() / (distances > 0).sum().clamp_min(1)
            relative.append(distances / mean.clamp_min(torch.finfo(x.dtype).tiny))
        return F.smooth_l1_loss(*relative)


class RKDAngleLoss(nn.Module):
    """Huber difference of the angles that any three samples form: RKD-A (Park et al. 2019, arXiv 1904.05068, eq. 8, 9).

    The angle at sample j is given by its cosine; the loss is the mean over all batch³ triples, as in the authors' code.
    Memory grows with batch² (batch + dim). Called and refused as `RKDDistanceLoss`.
    """

    @exact_products
    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        cosines = []
        for x in same_batch(student, teacher, at_least=2):
            directions = unit(x[None] - x[:, None], 2)
            cosines.append(directions @ directions.transpose(1, 2))
        return F.smooth_l1_loss(*cosines)


class RKDLoss(nn.Module):
    """distance RKD-D + angle RKD-A; the weights are the paper's for classification (25 and 50)."""

    def __init__(self, distance: float = 25.0, angle: float = 50.0):
        super().__init__()
        self.distance, self.angle = distance, angle
        self.distances, self.angles = RKDDistanceLoss(), RKDAngleLoss()

    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        return self.distance * self.distances(student, teacher) + self.angle * self.angles(student, teacher)


class CCKDLoss(nn.Module):
    """||K_s - K_t||²_F / batch² of the kernels between samples (Peng et al. 2019, arXiv 1904.01802).

    Args:
        kernel: ``"gaussian"``, exp(-γ ||a - b||²) of vectors of unit length (they are normalised here), by the Taylor
            series of exp(2γ a·b) up to `order`; or ``"bilinear"``, a·b of the vectors as they are.
        gamma: γ of the Gaussian.
        order: P, the last power of the series.

    student and teacher: [batch, ...] with dims of their own; in the paper each comes through a linear head.
    Raises ValueError for an unknown kernel, γ that is not positive, an order below 1, or other batch sizes.
    """

    def __init__(self, kernel: str = "gaussian", *, gamma: float = 0.4, order: int = 2):
        super().__init__()
        if kernel not in ("gaussian", "bilinear"):
            raise ValueError(f"kernel: got {kernel!r}, expected 'gaussian' or 'bilinear'")
        if order < 1:
            raise ValueError(f"order: got {order}, expected at least 1")
        check_positive(gamma=gamma)
        self.kernel, self.gamma, self.order = kernel, gamma, order

    @exact_products
    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        ours, theirs = (self.correlation(x) for x in same_batch(student, teacher))
        return (ours - theirs).square().mean()

    def correlation(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch"]:
        if self.kernel == "bilinear":
            return x @ x.T
        x = unit(x, 1)
        cosines = x @ x.T
        series = sum((2 * self.gamma) ** p / math.factorial(p) * cosines**p for p in range(self.order + 1))
        return math.exp(-2 * self.gamma) * series


class SPKDLoss(nn.Module):
    """||G_s - G_t||²_F / batch², with G the products of samples, every row of unit length (Tung & Mori 2019).

    arXiv 1907.09682, equations 1-4. student and teacher: [batch, ...] with dims of their own.
    Raises ValueError for other batch sizes, with both shapes.
    """

    @exact_products
    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        ours, theirs = (unit(x @ x.T, 1) for x in same_batch(student, teacher))
        return (ours - theirs).square().mean()


class PKTLoss(nn.Module):
    """KL of the chances that samples pick each other, by cosine (Passalis & Tefas 2018, arXiv 1803.10837).

    Affinities (cos + 1) / 2 are divided by their row sums; the loss is the mean over all pairs of
    p_t log((p_t + eps) / (p_s + eps)), as in the authors' code (the paper sums).

    student and teacher: [batch, ...] with dims of their own. Raises ValueError for other batch sizes, with both shapes.
    """

    def __init__(self, eps: float = 1e-7):
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps

    @exact_products
    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *teacher_size"]
    ) -> Float[Tensor, ""]:
        affinities = []
        for x in same_batch(student, teacher):
            x = x / (x.norm(dim=1, keepdim=True) + self.eps)
            affinity = (x @ x.T + 1) / 2
            affinities.append(affinity / affinity.sum(1, keepdim=True))
        ours, theirs = affinities
        return (theirs * ((theirs + self.eps) / (ours + self.eps)).log()).mean()


class ICKDLoss(nn.Module):
    """||G_s - G_t||²_F / channels, with G a sample's products of channels, every row of unit length; batch mean.

    Inter-channel correlation (Liu et al. 2021, arXiv 2202.03680; the rows' length as in the authors' code).

    student and teacher: [batch, channels, *size], of one number of channels (a 1x1 convolution makes it so); the sizes
    may differ. Raises ValueError, with both shapes, otherwise.
    """

    @exact_products
    def forward(
        self, student: Float[Tensor, "batch channels *size"], teacher: Float[Tensor, "batch channels *teacher_size"]
    ) -> Float[Tensor, ""]:
        if min(student.ndim, teacher.ndim) < 3 or student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f"feature maps: got student {list(student.shape)} and teacher {list(teacher.shape)}, expected "
                "[batch, channels, *size] of one batch size and number of channels; an adaptation module makes it so"
            )
        ours, theirs = (unit(x @ x.transpose(1, 2), 2) for x in (y.flatten(2) for y in wide(student, teacher)))
        return (ours - theirs).square().sum((1, 2)).mean() / ours.shape[1]

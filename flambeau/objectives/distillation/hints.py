"""Distillation of intermediate features: what one layer of the student should look like."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import check_positive, exact_products, same_map, same_shape, unit, wide


class FitNetLoss(nn.Module):
    """Mean squared difference of two features: the hint (Romero et al. 2015, arXiv 1412.6550).

    student and teacher: tensors of one shape; a regressor (`ConvAdapter`) makes them so. Gives a scalar.
    Raises ValueError, with both shapes, if they differ.
    """

    def forward(self, student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        return F.mse_loss(*same_shape(student, teacher))


class AttentionTransfer(nn.Module):
    """Difference of attention maps: where, not what, the features are large (Zagoruyko & Komodakis 2017).

    arXiv 1612.03928, section 3.1. The map of a feature is the sum over channels of its squares, made a vector of unit
    length. The paper's equation 2 and its authors' code weigh the difference d of two maps unlike:

    mode: ``"code"``, the mean over samples and positions of d²; or ``"paper"``, the mean over samples of ||d||.

    student and teacher: [batch, channels, *size]; the channels may differ. Gives a scalar.
    Raises ValueError, with both shapes, for another batch or spatial size, and for an unknown mode.
    """

    def __init__(self, mode: str = "code"):
        super().__init__()
        if mode not in ("code", "paper"):
            raise ValueError(f"mode: got {mode!r}, expected 'code' or 'paper'")
        self.mode = mode

    def forward(
        self, student: Float[Tensor, "batch channels *size"], teacher: Float[Tensor, "batch teacher_channels *size"]
    ) -> Float[Tensor, ""]:
        student, teacher = same_map(student, teacher)
        first, second = (unit(x.square().mean(1).flatten(1), 1) for x in (student, teacher))
        difference = first - second
        return difference.square().mean() if self.mode == "code" else difference.norm(dim=1).mean()


class FSPLoss(nn.Module):
    """Difference of how two layers of a network lead to each other (Yim et al. 2017, CVPR, equations 1 and 2).

    The flow matrix of features F1 and F2 is G = F1ᵀ F2 / (height width), after max pooling to the smaller of both
    sizes; the loss is ||G_student - G_teacher||²_F, averaged over the batch.

    Calling it with (first, second) of the student and of the teacher, [batch, channels, height, width] each, gives a
    scalar. Channels must agree between the models. Raises ValueError, with both shapes, if the flow matrices differ.
    """

    @exact_products
    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        flows = []
        for first, second in (student, teacher):
            size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
            first, second = (F.adaptive_max_pool2d(x, size).flatten(2) for x in wide(first, second))
            flows.append(first @ second.transpose(1, 2) / first.shape[2])
        ours, theirs = same_shape(*flows)
        return (ours - theirs).square().sum((1, 2)).mean()


class KTALoss(nn.Module):
    """||F_t / ||F_t||_q - F_s / ||F_s||_q||_p of two latents (He et al. 2019, arXiv 1903.04688).

    The teacher's latent comes from an autoencoder of its features, the student's from an adapter (`Paraphraser`,
    `ConvAdapter`). Each sample is one vector. p=1, the default, is the mean absolute difference of all entries, as in
    factor transfer; any other p the norm of a sample's difference, averaged over the batch.

    Raises ValueError for p or q that are not positive, and for latents of two shapes, with both.
    """

    def __init__(self, p: float = 1, q: float = 2):
        super().__init__()
        check_positive(p=p, q=q)
        self.p, self.q = p, q

    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *size"]
    ) -> Float[Tensor, ""]:
        student, teacher = same_shape(student, teacher)
        difference = unit(student.flatten(1), 1, self.q) - unit(teacher.flatten(1), 1, self.q)
        return difference.abs().mean() if self.p == 1 else difference.norm(self.p, 1).mean()


class FTLoss(KTALoss):
    """Difference of the paraphrased teacher's and the translated student's factor, each of unit Euclidean length.

    Factor transfer (Kim, Park & Kwak 2018, arXiv 1802.04977): `KTALoss` with q = 2.
    """

    def __init__(self, p: float = 1):
        super().__init__(p=p, q=2)


class AffinityLoss(nn.Module):
    """Difference of the affinities of positions, channel by channel (He et al. 2019, arXiv 1903.04688).

    A channel's map, a vector f of unit length, has the affinity f fᵀ / (height width); the loss is the Frobenius norm
    of the difference, summed over channels and averaged over the batch. The matrices are not formed.

    student and teacher: [batch, channels, *size] of one shape. Raises ValueError, with both shapes, if they differ.
    """

    def forward(
        self, student: Float[Tensor, "batch channels *size"], teacher: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, ""]:
        student, teacher = (x.flatten(2) for x in same_shape(student, teacher))
        s, t = unit(student, 2), unit(teacher, 2)
        # 2 ||s sᵀ - t tᵀ||² = ||s - t||² ||s + t||² + (|s|² - |t|²)²: products of lengths, no difference of near equals
        crossed = (s - t).norm(dim=2) * (s + t).norm(dim=2)
        lengths = s.square().sum(2) - t.square().sum(2)
        return torch.stack([crossed, lengths]).norm(dim=0).sum(1).mean() / (2**0.5 * s.shape[2])


class ABLoss(nn.Module):
    """Neurons on the same side of their threshold as the teacher's, by a margin (Heo et al. 2019, arXiv 1811.03233).

    Where the teacher's response before its activation is positive, max(0, μ - s)²; elsewhere
    max(0, μ + s)²; summed over neurons and averaged over the batch. The student's responses come from a connector.

    margin: μ > 0. student and teacher: tensors of one shape, responses before the activation.
    Raises ValueError for another margin, and with both shapes if they differ.
    """

    def __init__(self, margin: float = 1.0):
        super().__init__()
        check_positive(margin=margin)
        self.margin = margin

    def forward(
        self, student: Float[Tensor, "batch *size"], teacher: Float[Tensor, "batch *size"]
    ) -> Float[Tensor, ""]:
        student, teacher = same_shape(student, teacher)
        signed = torch.where(teacher > 0, student, -student)
        return F.relu(self.margin - signed).square().sum() / len(student)


class HierarchicalContextLoss(nn.Module):
    """Mean squared difference of two features at several scales (Chen et al. 2021, arXiv 2104.09044).

    The features themselves, with weight 1, and their averages over a grid of each of `sizes` cells a side that is
    smaller than the feature, weighing half of the one before; divided by the sum of weights.

    student and teacher: [batch, channels, height, width] of one shape. Raises ValueError, with both shapes, otherwise.
    """

    def __init__(self, sizes: Sequence[int] = (4, 2, 1)):
        super().__init__()
        if any(size < 1 for size in sizes):
            raise ValueError(f"sizes: got {list(sizes)}, expected grids of at least 1 cell a side")
        self.sizes = tuple(sizes)

    def forward(
        self,
        student: Float[Tensor, "batch channels height width"],
        teacher: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, ""]:
        student, teacher = same_shape(student, teacher)
        if student.ndim != 4:
            raise ValueError(f"features: got {list(student.shape)}, expected [batch, channels, height, width]")
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for size in self.sizes:
            if size >= student.shape[2]:
                continue
            weight /= 2
            total += weight
            loss = loss + weight * F.mse_loss(*(F.adaptive_avg_pool2d(x, size) for x in (student, teacher)))
        return loss / total


class SRDLoss(nn.Module):
    """log Σ |s - t|^exponent of projected, normalised features (Miles & Mikolajczyk 2024, arXiv 2303.11098).

    The logarithm keeps many small differences from being drowned by a few large ones, or drowning them. The sum is over
    the batch too. The method's whole loss on ImageNet is CE + 2 SRD + KL at temperature 1, of separate parts.

    exponent: α > 0; 4 on ImageNet. student and teacher: tensors of one shape (see `SRDProjector`).
    Raises ValueError for another exponent, and with both shapes if they differ.
    """

    def __init__(self, exponent: float = 4.0):
        super().__init__()
        check_positive(exponent=exponent)
        self.exponent = exponent

    def forward(self, student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        student, teacher = same_shape(student, teacher)
        total = (student - teacher).abs().pow(self.exponent).sum()
        return total.clamp_min(torch.finfo(total.dtype).tiny).log()


class RegularizationLoss(nn.Module):
    """The p-norm of any one tensor, of all its entries (p=1: sparse activations)."""

    def __init__(self, p: float = 1):
        super().__init__()
        check_positive(p=p)
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        (x,) = wide(x)
        return torch.linalg.vector_norm(x, self.p)

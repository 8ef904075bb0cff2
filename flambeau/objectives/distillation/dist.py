"""Distillation of relations between predictions by Pearson's correlation."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import check_positive, same_classes, same_shape


def correlation_distance(
    student: Float[Tensor, "rows columns"], teacher: Float[Tensor, "rows columns"], eps: float
) -> Float[Tensor, ""]:
    """Mean over rows of 1 - ρ, Pearson's correlation of the two rows."""
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=eps).mean()


class DISTLoss(nn.Module):
    """T² (β L_inter + γ L_intra): correlations instead of exact probabilities (Huang et al. 2022, arXiv 2205.10536).

    L_inter is 1 - ρ of a sample's class probabilities, averaged over samples; L_intra is 1 - ρ of a
    class' probabilities over the batch, averaged over classes. A stronger teacher need only be matched up to shift and
    scale.

    Args:
        beta, gamma: weights of the two terms.
        temperature: T, of both softmaxes.

    Calling it with logits [batch, classes] or [batch, classes, ...] (every position a sample) gives a scalar.

    Raises:
        ValueError: T or eps that is not positive, logits of two shapes, fewer than two samples (no correlation).
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, *, temperature: float = 1.0, eps: float = 1e-8):
        super().__init__()
        check_positive(temperature=temperature, eps=eps)
        self.beta, self.gamma, self.temperature, self.eps = beta, gamma, temperature, eps

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes *size"],
        teacher_logits: Float[Tensor, "batch classes *size"],
    ) -> Float[Tensor, ""]:
        both = same_classes(student_logits, teacher_logits)
        student, teacher = ((z / self.temperature).softmax(1).movedim(1, -1).flatten(0, -2) for z in both)
        if len(student) < 2:
            raise ValueError(f"logits: got {list(student_logits.shape)}, expected at least 2 samples to correlate")
        inter = correlation_distance(student, teacher, self.eps)
        intra = correlation_distance(student.T, teacher.T, self.eps)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


class DISTPlusLoss(nn.Module):
    """DIST of logits, and of feature maps along channels and positions (Huang et al. 2025, IEEE TPAMI, DIST+).

    ι times 1 - ρ over the channels of a position, averaged over positions and samples, plus κ times 1 - ρ over the
    batch of a position's channel sum, averaged over positions, plus `DISTLoss`. All terms are distances: 0 for features
    that correlate perfectly.

    Calling it with (logits, features) of the student and of the teacher gives a scalar; features are
    [batch, channels, height, width] of one shape (see `ConvAdapter`).

    Raises:
        ValueError: as `DISTLoss`, and for features of two shapes, with both.
    """

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        iota: float = 1.0,
        kappa: float = 1.0,
        *,
        temperature: float = 1.0,
        eps: float = 1e-8,
    ):
        super().__init__()
        self.logits = DISTLoss(beta, gamma, temperature=temperature, eps=eps)
        self.iota, self.kappa, self.eps = iota, kappa, eps

    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        loss = self.logits(student[0], teacher[0])
        ours, theirs = same_shape(student[1], teacher[1])
        channels = correlation_distance(
            ours.movedim(1, -1).flatten(0, -2), theirs.movedim(1, -1).flatten(0, -2), self.eps
        )
        positions = correlation_distance(ours.sum(1).flatten(1).T, theirs.sum(1).flatten(1).T, self.eps)
        return loss + self.iota * channels + self.kappa * positions

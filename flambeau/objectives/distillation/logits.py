"""Distillation of class predictions."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import check_positive, exact_products, same_classes, unit, wide


def softened_kl(
    student_logits: Float[Tensor, "batch classes *size"],
    teacher_logits: Float[Tensor, "batch classes *size"],
    temperature: float,
) -> Float[Tensor, ""]:
    """KL(p_teacher || p_student) of the class probabilities at `temperature`, summed over classes.

    The mean is taken over all predictions: over the batch and, for dense logits, over positions too.
    """
    log_student = F.log_softmax(student_logits / temperature, 1)
    log_teacher = F.log_softmax(teacher_logits / temperature, 1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1).mean()


def cross_entropy(logits: Float[Tensor, "batch classes *size"], y: Tensor, ignore_index: int = -100) -> Tensor:
    """Cross-entropy, averaged over the labelled predictions; 0 if none is (a batch of unlabelled images)."""
    if y.is_floating_point():
        return F.cross_entropy(logits, y)
    total = F.cross_entropy(logits, y, ignore_index=ignore_index, reduction="sum")
    return total / (y != ignore_index).sum().clamp_min(1)


def check_weights(alpha: float, beta: float | None) -> float:
    """The weight of the soft term: `beta`, or 1 - alpha."""
    if beta is None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: got {alpha}, expected [0, 1], or give beta too")
        return 1 - alpha
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a weight of at least 0")
    return beta


class KDLoss(nn.Module):
    """α CE(y, z_s) + β T² KL(p_t^T || p_s^T) (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2).

    T² keeps the soft term's gradient at its size whatever the temperature, so it stays when there is no hard term
    (α = 0, or no labels): the learning rate need not be retuned for them.

    Args:
        temperature: T > 0.
        alpha: weight of the cross-entropy with the labels.
        beta: weight of the soft term; 1 - alpha if not given, and then alpha must lie in [0, 1].
        ignore_index: the label of predictions without one; only the cross-entropy leaves them out.

    Calling it with student and teacher logits [batch, classes] or [batch, classes, ...] (dense prediction; both terms
    are means over batch and positions) and labels y (int64 [batch, ...], or probabilities in the logits' shape) gives a
    scalar. Without y the cross-entropy is left out and β stays.

    Raises:
        ValueError: T that is not positive, weights outside their range, logits of two shapes (other class counts).
    """

    def __init__(
        self, temperature: float = 4.0, alpha: float = 0.5, beta: float | None = None, *, ignore_index: int = -100
    ):
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature, self.alpha, self.beta = temperature, alpha, check_weights(alpha, beta)
        self.ignore_index = ignore_index

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes *size"],
        teacher_logits: Float[Tensor, "batch classes *size"],
        y: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        student, teacher = same_classes(student_logits, teacher_logits)
        loss = self.beta * self.temperature**2 * softened_kl(student, teacher, self.temperature)
        if y is None or self.alpha == 0:
            return loss
        return loss + self.alpha * cross_entropy(student, y, self.ignore_index)


class LogitStdKDLoss(nn.Module):
    """KD of standardised logits: the student matches how classes are ranked and spaced, not how large logits are.

    Sun et al. 2024, arXiv 2403.01427: z -> (z - mean(z)) / (std(z) + eps) over classes, with the unbiased std, before
    the temperature. The cross-entropy sees the logits as they are.

    temperature: the base temperature, 2 in the authors' code, which weighs the terms alpha=0.1 and beta=9.
    The rest, the call and the errors are those of `KDLoss`.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.5,
        beta: float | None = None,
        *,
        eps: float = 1e-7,
        ignore_index: int = -100,
    ):
        super().__init__()
        check_positive(temperature=temperature, eps=eps)
        self.temperature, self.alpha, self.beta = temperature, alpha, check_weights(alpha, beta)
        self.eps, self.ignore_index = eps, ignore_index

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes *size"],
        teacher_logits: Float[Tensor, "batch classes *size"],
        y: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        student, teacher = same_classes(student_logits, teacher_logits)
        first, second = ((z - z.mean(1, True)) / (self.eps + z.std(1, keepdim=True)) for z in (student, teacher))
        loss = self.beta * self.temperature**2 * softened_kl(first, second, self.temperature)
        if y is None or self.alpha == 0:
            return loss
        return loss + self.alpha * cross_entropy(student, y, self.ignore_index)


class TfKDLoss(nn.Module):
    """Teacher-free KD with a virtual teacher that is always right (Yuan et al. 2020, arXiv 1909.11723).

    (1 - α) CE(y, z) + α KL(p^d_T || p): p^d gives the true class the probability `correct` and the others an equal
    share, and p^d_T = softmax(p^d / T). As in the authors' code the student is not softened; the divergence is summed
    over classes. (Tf-KD_self, a teacher of the student's own kind, is `KDLoss`.)

    Calling it with logits [batch, classes] and labels int64 [batch] gives a scalar. Raises ValueError for T that is not
    positive, alpha or correct outside [0, 1], or logits of one class.
    """

    def __init__(self, temperature: float = 20.0, alpha: float = 0.1, *, correct: float = 0.99):
        super().__init__()
        check_positive(temperature=temperature)
        for name, value in (("alpha", alpha), ("correct", correct)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected [0, 1]")
        self.temperature, self.alpha, self.correct = temperature, alpha, correct

    def forward(self, logits: Float[Tensor, "batch classes"], y: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
        if logits.ndim != 2 or logits.shape[1] < 2 or y.shape != logits.shape[:1]:
            raise ValueError(
                f"logits, y: got {list(logits.shape)} and {list(y.shape)}, expected [batch, classes > 1] and [batch]"
            )
        (logits,) = wide(logits)
        teacher = torch.full_like(logits, (1 - self.correct) / (logits.shape[1] - 1))
        teacher = teacher.scatter(1, y[:, None], self.correct) / self.temperature
        soft = softened_kl(logits, teacher, 1.0)
        return (1 - self.alpha) * F.cross_entropy(logits, y) + self.alpha * soft


class SKDInstanceLoss(nn.Module):
    """KL(p_t^T || p_s^T) without T²: the instance term of Streamlined KD (Jeong, Lee & Choi 2026, CVPR).

    temperature: 4 in the authors' code; the paper gives none. Called and refused as `KDLoss` without labels.
    """

    def __init__(self, temperature: float = 4.0):
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes *size"],
        teacher_logits: Float[Tensor, "batch classes *size"],
    ) -> Float[Tensor, ""]:
        return softened_kl(*same_classes(student_logits, teacher_logits), self.temperature)


class SKDDirectionLoss(nn.Module):
    """Mahalanobis length of the difference of two Gram matrices: the direction term of Streamlined KD.

    Jeong, Lee & Choi 2026, CVPR: with D the student's minus the teacher's matrix of cosines between the batch's logits
    and Σ the covariance of D's rows, the mean over rows of sqrt(D_i (Σ + λ 1)^-1 D_i).

    tikhonov: λ, 0.1 in the authors' code; the paper gives none.

    Calling it with logits [batch, classes] of both gives a scalar. Raises ValueError for λ that is not positive, other
    shapes, or fewer than two samples (no covariance).
    """

    def __init__(self, tikhonov: float = 0.1):
        super().__init__()
        check_positive(tikhonov=tikhonov)
        self.tikhonov = tikhonov

    @exact_products
    def forward(
        self, student_logits: Float[Tensor, "batch classes"], teacher_logits: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        student, teacher = same_classes(student_logits, teacher_logits)
        if student.ndim != 2 or len(student) < 2:
            raise ValueError(f"logits: got {list(student.shape)}, expected [batch of at least 2, classes]")
        student, teacher = unit(student, 1), unit(teacher, 1)
        difference = student @ student.T - teacher @ teacher.T
        ridge = self.tikhonov * torch.eye(len(difference), device=difference.device, dtype=difference.dtype)
        factor = torch.linalg.cholesky(torch.cov(difference.T) + ridge)
        # With Σ' = L Lᵀ the form is ||L^-1 D_i||², whose root has a gradient where D_i is 0.
        return torch.linalg.solve_triangular(factor, difference.T, upper=False).norm(dim=0).mean()

"""Distillation in which the student also says how sure it is of each feature."""

from jaxtyping import Float
from torch import Tensor, nn

from flambeau.objectives.distillation.checks import check_positive, same_shape, wide


class VIDLoss(nn.Module):
    """½ [(t - μ)² / σ² + log σ²], averaged over all entries (Ahn et al. 2019, arXiv 1904.05835).

    The negative log-likelihood of the teacher's feature under a Gaussian whose mean, and variance of each channel, a
    regressor gives (`VIDRegressor`): a bound on the information shared with the student.

    Calling it with (mean, variance) of the student and the feature of the teacher, [batch, channels, *size], gives a
    scalar; the variance, positive, need only broadcast. Raises ValueError, with both shapes, if mean and feature
    differ.
    """

    def forward(
        self, student: tuple[Tensor, Tensor], teacher: Float[Tensor, "batch channels *size"]
    ) -> Float[Tensor, ""]:
        mean, teacher = same_shape(student[0], teacher)
        (variance,) = wide(student[1])
        return 0.5 * ((teacher - mean).square() / variance + variance.log()).mean()


class PADL2Loss(nn.Module):
    """(t - s)² / (ε + exp(v)) + v, averaged over entries: hard samples count less (Zhang et al. 2020, ECCV).

    arXiv 2008.01458, prime-aware adaptive distillation. v is the log-variance that a branch gives from the student's
    feature (`VarianceBranch`). ε only keeps the quotient finite; the second term is v itself, so that the branch must
    bound it (its BatchNorm does).

    Calling it with (feature, log_variance) of the student and the feature of the teacher gives a scalar; features are
    flattened to [batch, dim]. Raises ValueError, with both shapes, if they differ, and for ε that is not positive.
    """

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        check_positive(eps=eps)
        self.eps = eps

    def forward(self, student: tuple[Tensor, Tensor], teacher: Float[Tensor, "batch *size"]) -> Float[Tensor, ""]:
        feature, teacher = same_shape(student[0].flatten(1), teacher.flatten(1))
        feature, log_variance = same_shape(feature, student[1].flatten(1))
        return ((teacher - feature).square() / (self.eps + log_variance.exp()) + log_variance).mean()

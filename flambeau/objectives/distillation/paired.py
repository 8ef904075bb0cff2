"""A loss of two tensors of one model."""

from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import same_shape


class PairMSELoss(nn.Module):
    """Mean squared difference of two tensors of one model, given as a tuple, for example a map and its reconstruction.

    The first stage of factor transfer trains the teacher's `Paraphraser` with it (Kim, Park & Kwak 2018, arXiv
    1802.04977, equation 1). Raises ValueError, with both shapes, if they differ.
    """

    def forward(self, teacher: tuple[Tensor, Tensor]) -> Tensor:
        reconstruction, original = same_shape(*teacher)
        return F.mse_loss(reconstruction, original)

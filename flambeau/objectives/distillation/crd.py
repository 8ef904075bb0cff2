"""Contrastive representation distillation, with its memory of all training samples."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from flambeau.objectives.distillation.alias import AliasSampler
from flambeau.objectives.distillation.checks import check_positive, exact_products, same_shape


class CRDLoss(nn.Module):
    """The student's and the teacher's view of a sample, told from views of others (Tian et al. 2020, arXiv 1910.10699).

    Noise-contrastive estimation: h = P / (P + K/N) is the chance that a pair belongs together, with
    P = exp(a·b / τ) / Z, and -log h of the true pair and -log(1 - h) of K false ones are summed, once with the student
    as a against remembered teachers and once the other way round; the mean is taken over the batch. Z is set at the
    first training batch, to N times the mean of exp(a·b / τ), and then stays.

    The memory has a vector of each side for each training sample. In training mode a batch's vectors are mixed into
    theirs after they were compared. Memory, Z and the sampler's table are buffers: saved, restored and moved with the
    module. Every process has a memory of its own.

    Args:
        num_samples: N, the number of training samples.
        dim: of both vectors, unit vectors of one space (see `CRDHead`).
        negatives: K.
        temperature: τ.
        momentum: the part of a remembered vector that stays.
        weights: [N], how often a sample is drawn as a negative; all equally often if not given.
        eps: added to denominators.

    Raises:
        ValueError: sizes below 1, τ or eps that is not positive, momentum outside [0, 1), weights of another length. In
            the call: vectors of another shape (both are printed), indices of another shape or outside [0, N).
    """

    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int = 128,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weights: Float[Tensor, " samples"] | None = None,
        eps: float = 1e-7,
    ):
        super().__init__()
        for name, value in (("num_samples", num_samples), ("dim", dim), ("negatives", negatives)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        check_positive(temperature=temperature, eps=eps)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: got {momentum}, expected [0, 1)")
        if weights is not None and len(weights) != num_samples:
            raise ValueError(f"weights: got {len(weights)}, expected one for each of the {num_samples} samples")
        self.num_samples, self.dim, self.negatives = num_samples, dim, negatives
        self.temperature, self.momentum, self.eps = temperature, momentum, eps
        self.sampler = AliasSampler(torch.ones(num_samples) if weights is None else weights)
        bound = (3 / dim) ** 0.5  # vectors of length 1 on average
        self.register_buffer("memory_student", torch.empty(num_samples, dim).uniform_(-bound, bound))
        self.register_buffer("memory_teacher", torch.empty(num_samples, dim).uniform_(-bound, bound))
        self.register_buffer("z_student", torch.tensor(-1.0))  # negative: not yet set
        self.register_buffer("z_teacher", torch.tensor(-1.0))

    @exact_products
    def forward(
        self,
        student: Float[Tensor, "batch dim"],
        teacher: Float[Tensor, "batch dim"],
        index: Int64[Tensor, " batch"],
        negative_index: Int64[Tensor, "batch negatives"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The scalar loss of a batch.

        index: the samples' numbers in the training set. negative_index: numbers of samples to tell them from (of other
        classes, for example), of any count; if not given, K are drawn for each, the sample itself not excluded.
        """
        student, teacher = same_shape(student, teacher)
        if student.ndim != 2 or student.shape[1] != self.dim:
            raise ValueError(f"student and teacher: got {list(student.shape)}, expected [batch, {self.dim}]")
        if index.shape != student.shape[:1]:
            raise ValueError(f"index: got {list(index.shape)}, expected [{len(student)}]")
        if negative_index is None:
            negative_index = self.sampler.draw(len(index), self.negatives, generator=generator)
        elif negative_index.ndim != 2 or len(negative_index) != len(index) or not negative_index.numel():
            raise ValueError(f"negative_index: got {list(negative_index.shape)}, expected [{len(index)}, negatives]")
        for name, values in (("index", index), ("negative_index", negative_index)):
            low, high = (int(bound) for bound in values.aminmax())
            if low < 0 or high >= self.num_samples:
                raise ValueError(f"{name}: got values from {low} to {high}, expected [0, {self.num_samples})")
        picked = torch.cat([index[:, None], negative_index.to(index.device)], 1)
        loss = self._side(student, self.memory_teacher, picked, self.z_student)
        loss = loss + self._side(teacher, self.memory_student, picked, self.z_teacher)
        if self.training:
            self._remember(self.memory_student, student, index)
            self._remember(self.memory_teacher, teacher, index)
        return loss

    def _side(self, anchors: Tensor, memory: Tensor, picked: Tensor, z: Tensor) -> Float[Tensor, ""]:
        """The sum over one positive (the first picked) and all negatives, as a mean over anchors."""
        # Copies of the memory, which changes in place before the backward pass.
        if picked.shape[1] < self.num_samples:
            products = torch.einsum("bkd,bd->bk", memory[picked].to(anchors.dtype), anchors)
        else:  # more are picked than there are: each product once
            products = (anchors @ memory.to(anchors.dtype, copy=True).T).gather(1, picked)
        score = (products / self.temperature).exp()
        constant = torch.where(z < 0, score.detach().mean() * self.num_samples, z)
        if self.training:
            z.copy_(constant)
        chance = score / constant
        noise = (picked.shape[1] - 1) / self.num_samples
        positive, negative = chance[:, 0], chance[:, 1:]
        log_true = (positive / (positive + noise + self.eps)).log()
        log_false = (noise / (negative + noise + self.eps)).log()
        return -(log_true.sum() + log_false.sum()) / len(anchors)

    @torch.no_grad()
    def _remember(self, memory: Tensor, vectors: Tensor, index: Tensor) -> None:
        mixed = self.momentum * memory[index] + (1 - self.momentum) * vectors.to(memory.dtype)
        memory[index] = torch.nn.functional.normalize(mixed, dim=1)

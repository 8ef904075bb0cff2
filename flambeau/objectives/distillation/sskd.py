"""Distillation of a self-supervised task: which original does a transformed image come from.

Source: Xu, Liu, Li & Loy 2020, "Knowledge Distillation Meets Self-Supervision" (ECCV), arXiv 2006.07114. A batch holds
an image and then its three transformed versions (rotations by 90, 180 and 270 degrees), image after image.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.objectives.distillation.checks import (
    check_positive,
    exact_products,
    same_batch,
    same_classes,
    unit,
    wide,
)
from flambeau.objectives.distillation.logits import softened_kl

VERSIONS = 4  # of an image in a batch; the first is the original


@exact_products
def origin_similarities(embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "transformed originals"]:
    """Cosine of every transformed version with every original."""
    if embedding.ndim != 2 or not len(embedding) or len(embedding) % VERSIONS:
        raise ValueError(
            f"embedding: got {list(embedding.shape)}, expected [batch, dim] with {VERSIONS} versions of every image"
        )
    (embedding,) = wide(embedding)
    versions = unit(embedding, 1).unflatten(0, (-1, VERSIONS))
    return versions[:, 1:].flatten(0, 1) @ versions[:, 0].T


def own_origin(similarities: Float[Tensor, "transformed originals"]) -> Int64[Tensor, " transformed"]:
    """The original that each transformed version comes from."""
    return torch.arange(similarities.shape[1], device=similarities.device).repeat_interleave(VERSIONS - 1)


class SSKDPretextLoss(nn.Module):
    """Cross-entropy of finding the original by cosine: what the teacher's self-supervision head is trained with first.

    embedding: [batch, dim], the head's output (`SSHead`) for versions of images as the module says. Gives a scalar.
    Raises ValueError for a batch that does not hold whole sets of versions.
    """

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        similarities = origin_similarities(embedding)
        return F.cross_entropy(similarities, own_origin(similarities))


class SSKDLoss(nn.Module):
    """Cross-entropy, and divergences of originals' classes, of similarities, and of transformed versions' classes.

    λ1 CE + λ2 KL(originals) + λ3 KL(similarities) + λ4 KL(transformed), each KL times its squared temperature and
    averaged over its rows. Where the teacher is wrong about a transformed version (about its original, or its class),
    only a part of such versions is kept: those in which the truth ranks highest.

    Args:
        temperature: of the originals' classes.
        similarity_temperature: of the similarities.
        transformed_temperature: of the transformed versions' classes.
        similarity_keep, transformed_keep: the parts of the teacher's wrong versions that are kept.
        weights: λ1 to λ4.

    Calling it with (logits, embedding) of the student, the same of the teacher, [batch, classes] and [batch, dim] each,
    and the originals' labels y, int64 [batch / 4], gives a scalar. Dims may differ between the models.

    Raises:
        ValueError: a temperature that is not positive, a part outside [0, 1], other than four weights; logits of two
            shapes, embeddings of other batches, labels of another length.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        similarity_temperature: float = 0.5,
        transformed_temperature: float = 4.0,
        *,
        similarity_keep: float = 0.75,
        transformed_keep: float = 1.0,
        weights: Sequence[float] = (1.0, 0.9, 10.0, 2.7),
    ):
        super().__init__()
        check_positive(
            temperature=temperature,
            similarity_temperature=similarity_temperature,
            transformed_temperature=transformed_temperature,
        )
        for name, value in (("similarity_keep", similarity_keep), ("transformed_keep", transformed_keep)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected [0, 1]")
        if len(weights) != 4:
            raise ValueError(f"weights: got {len(weights)}, expected 4")
        self.temperature, self.similarity_temperature = temperature, similarity_temperature
        self.transformed_temperature, self.weights = transformed_temperature, tuple(weights)
        self.similarity_keep, self.transformed_keep = similarity_keep, transformed_keep

    def forward(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], y: Int64[Tensor, " images"]
    ) -> Float[Tensor, ""]:
        student_logits, teacher_logits = same_classes(student[0], teacher[0])
        same_batch(student_logits, student[1])
        same_batch(student_logits, teacher[1])
        ours, theirs = origin_similarities(student[1]), origin_similarities(teacher[1])
        if y.shape != (ours.shape[1],):
            raise ValueError(f"y: got {list(y.shape)}, expected a label for each of the {ours.shape[1]} originals")
        student_versions = student_logits.unflatten(0, (-1, VERSIONS))
        teacher_versions = teacher_logits.unflatten(0, (-1, VERSIONS))
        originals = (student_versions[:, 0], teacher_versions[:, 0])
        transformed = (student_versions[:, 1:].flatten(0, 1), teacher_versions[:, 1:].flatten(0, 1))
        labels = y.repeat_interleave(VERSIONS - 1)
        terms = (
            F.cross_entropy(originals[0], y),
            self.temperature**2 * softened_kl(*originals, self.temperature),
            trusted_kl(ours, theirs, own_origin(theirs), self.similarity_temperature, self.similarity_keep),
            trusted_kl(*transformed, labels, self.transformed_temperature, self.transformed_keep),
        )
        return torch.stack([weight * term for weight, term in zip(self.weights, terms)]).sum()


def trusted_kl(
    student: Float[Tensor, "rows choices"],
    teacher: Float[Tensor, "rows choices"],
    truth: Int64[Tensor, " rows"],
    temperature: float,
    keep: float,
) -> Float[Tensor, ""]:
    """T² KL(p_t^T || p_s^T), averaged over the rows in which the teacher is right and a part of the others.

    Rows are taken by the truth's rank in the teacher's row, best first; `keep` is the part of the wrong ones taken.
    0 if no row is.
    """
    rank = (teacher > teacher.gather(1, truth[:, None])).sum(1)
    wrong = int((rank > 0).sum())
    taken = rank.argsort(stable=True)[: len(rank) - wrong + int(wrong * keep)]
    if not len(taken):
        return student.sum() * 0
    return temperature**2 * softened_kl(student[taken], teacher[taken], temperature)

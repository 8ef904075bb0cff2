"""What every distillation loss asks of the two tensors it compares."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32, or in float64 if they come so: sums of squares and small eps do not fit in half."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def exact_products(function: Callable) -> Callable:
    """The function without autocast, which would round what its matrix products take to half precision."""

    @wraps(function)
    def exact(*arguments, **keywords):
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*arguments, **keywords)

    return exact


def same_shape(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in a wide type, or ValueError with both shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"features: got student {list(student.shape)} and teacher {list(teacher.shape)}, expected equal shapes; "
            "put an adaptation module between them"
        )
    student, teacher = wide(student, teacher)
    return student, teacher


def same_batch(student: Tensor, teacher: Tensor, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """[batch, dim] views of both in a wide type; the dims may differ. ValueError for other or too few samples."""
    if min(student.ndim, teacher.ndim) < 2 or len(student) != len(teacher):
        raise ValueError(
            f"features: got student {list(student.shape)} and teacher {list(teacher.shape)}, expected [batch, ...] of "
            "one batch size"
        )
    if len(student) < at_least:
        raise ValueError(f"features: got a batch of {len(student)}, expected at least {at_least} samples to relate")
    student, teacher = wide(student.flatten(1), teacher.flatten(1))
    return student, teacher


def same_map(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Feature maps [batch, channels, ...] whose channels may differ, in a wide type; ValueError with both shapes."""
    fits = student.ndim >= 3 and student.ndim == teacher.ndim
    if not fits or len(student) != len(teacher) or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"feature maps: got student {list(student.shape)} and teacher {list(teacher.shape)}, expected "
            "[batch, channels, *size] with one batch size and one spatial size; put an adaptation module between them"
        )
    student, teacher = wide(student, teacher)
    return student, teacher


def same_classes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [batch, classes, ...] in a wide type; ValueError with both shapes if they differ anywhere."""
    if student.ndim < 2 or student.shape != teacher.shape:
        raise ValueError(
            f"logits: got student {list(student.shape)} and teacher {list(teacher.shape)}, expected one shape "
            "[batch, classes, ...]: both must know the same classes"
        )
    student, teacher = wide(student, teacher)
    return student, teacher


def unit(x: Tensor, dim: int, p: float = 2) -> Tensor:
    """x over its p-norm along `dim`. Zero stays zero, with a gradient of ordinary size (not 1/eps)."""
    norm = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def check_positive(**values: float) -> None:
    """Raise ValueError naming the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a number above 0")

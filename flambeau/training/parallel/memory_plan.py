"""How long a sequence, or how large a batch, fits on accelerators that share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from flambeau.training.parallel.cost import HardwareSpec, TransformerSize, all_to_all_seconds, send_seconds

Scheme = Literal["ring", "tensor"]
STATE_BYTES = 16  # of a parameter: weight, gradient and Adam's two moments in float32


def saved_elements(
    size: TransformerSize, batch: int, length: int, ranks: int, scheme: Scheme = "ring", attention: str = "blockwise"
) -> float:
    """Elements that a rank keeps between forward and backward, for BERT with pre-norm blocks and no dropout.

    Counted from what each operation saves; `flambeau.ops.saved_tensors` finds the same within 5 %.

    scheme: "ring" splits the sequence, "tensor" heads, MLP and vocabulary (Megatron-LM). attention: "blockwise" keeps
    no scores, "scores" whole rows of them, ``"linformer:K"`` those of K combinations of keys.
    Raises ValueError for an unknown scheme or attention.
    """
    if scheme not in ("ring", "tensor"):
        raise ValueError(f"scheme must be 'ring' or 'tensor', got {scheme!r}")
    tokens, hidden = batch * length, size.hidden or 4 * size.width
    whole = tokens / ranks if scheme == "ring" else tokens  # tokens of what every tensor-parallel rank holds alike
    part = tokens / ranks
    if attention == "blockwise":
        scores = part * size.heads  # log-sum-exp
    elif attention == "scores":
        scores = part * size.heads * length
    elif attention.startswith("linformer:") and attention[10:].isdigit():
        combinations = int(attention[10:])
        scores = part * size.heads + 2 * batch * combinations * size.width / (1 if scheme == "ring" else ranks)
    else:
        raise ValueError(f"attention must be 'blockwise', 'scores' or 'linformer:K', got {attention!r}")
    block = whole * (4 * size.width + 4) + part * (4 * size.width + 2 * hidden) + scores
    head = whole * (5 * size.width + 4) + part * size.vocab
    return size.depth * block + head


def elements_as_published(
    batch: int, length: int, width: int, heads: int, ranks: int, scheme: Scheme = "ring"
) -> dict[str, float]:
    """Elements of one layer by part, as Li et al. 2023, arXiv 2105.13120, count them (tables 1 and 2).

    Weights, gradients and Adam's moments ("states") are counted as four times the parameters. Splitting the sequence
    needs less for the MLP when batch * length > 32 * width, and for attention when it exceeds 16 * width.
    """
    tokens = batch * length * width
    scores = batch * heads * length**2 / ranks
    if scheme == "ring":
        return {
            "mlp": 5 * tokens / ranks,
            "mlp states": 32 * width**2,
            "attention": 5 * tokens / ranks + scores,
            "attention states": 16 * width**2,
        }
    return {
        "mlp": 4 * tokens / ranks + tokens,
        "mlp states": 32 * width**2 / ranks,
        "attention": 4 * tokens / ranks + scores + tokens,
        "attention states": 16 * width**2 / ranks,
    }


def max_seq_len(
    hardware: HardwareSpec,
    size: TransformerSize,
    ranks: int,
    *,
    batch: int = 1,
    scheme: Scheme = "ring",
    attention: str = "blockwise",
    itemsize: int = 4,
    shard_states: bool = False,
    reserve: float = 0.1,
) -> int:
    """Longest sequence, a multiple of 64 `ranks`, whose training fits into each rank's memory; 0 if none does.

    itemsize: bytes of an activation. shard_states: weights, gradients and moments are sharded over the ranks as well
    (FSDP). reserve: share of the memory that is left for buffers and fragmentation.
    Raises ValueError for sizes below 1, or heads that "tensor" cannot divide over the ranks.
    """

    step = 64 * ranks

    def fits(steps: int) -> bool:
        return _fits(hardware, size, ranks, batch, steps * step, scheme, attention, itemsize, shard_states, reserve)

    return step * largest(fits)


def max_batch(
    hardware: HardwareSpec,
    size: TransformerSize,
    ranks: int,
    *,
    length: int | None = None,
    scheme: Scheme = "ring",
    attention: str = "blockwise",
    itemsize: int = 4,
    shard_states: bool = False,
    reserve: float = 0.1,
) -> int:
    """Most sequences of `length` (by default the model's) whose training fits, see `max_seq_len`."""

    def fits(batch: int) -> bool:
        return _fits(
            hardware, size, ranks, batch, length or size.length, scheme, attention, itemsize, shard_states, reserve
        )

    return largest(fits)


def context_mode(
    hardware: HardwareSpec, size: TransformerSize, ranks: int, *, batch: int, length: int, itemsize: int = 2
) -> Literal["blockwise", "ulysses"]:
    """The faster way to complete attention over the ranks: a ring hides its hops behind products, if they are long.

    "ulysses" where heads can be divided and four exchanges take less than what the ring's hops stick out by.
    """
    link = hardware.link(ranks)
    chunk = batch * length * size.width * itemsize / ranks
    rows = length // ranks
    efficiency = hardware.gemm_efficiency(rows, rows, size.width // size.heads)
    rate = max(hardware.peak_flops.values()) * max(efficiency, 1e-3)
    product = 4 * batch * rows**2 * size.width / rate
    ring = (ranks - 1) * max(0.0, send_seconds(2 * chunk, link) - product)
    exchanges = 4 * all_to_all_seconds(chunk, ranks, link)
    return "ulysses" if size.heads % ranks == 0 and exchanges < ring else "blockwise"


def largest(fits: Callable[[int], bool], limit: int = 2**40) -> int:
    """Largest n up to `limit` for which `fits(n)`, which holds up to some n and never from there on; 0 if for none."""
    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(
    hardware: HardwareSpec,
    size: TransformerSize,
    ranks: int,
    batch: int,
    length: int,
    scheme: Scheme,
    attention: str,
    itemsize: int,
    shard_states: bool,
    reserve: float,
) -> bool:
    if ranks < 1 or batch < 1:
        raise ValueError(f"ranks and batch must be at least 1, got {ranks} and {batch}")
    if scheme == "tensor" and size.heads % ranks:
        raise ValueError(f"scheme 'tensor' divides heads over ranks, got {size.heads} heads and {ranks} ranks")
    states: float = STATE_BYTES * size.parameters
    if shard_states or scheme == "tensor":
        states /= ranks
    activations = itemsize * saved_elements(size, batch, length, ranks, scheme, attention)
    return states + activations <= (1 - reserve) * hardware.memory

"""What lean decode attention is timed against: one worker a head, fixed splits, and PyTorch's attention."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flambeau.ops.bench import Case, interleaved, torch_threads
from flambeau.ops.lean_attention import lean_decode

# lengths of the rows, key/value heads, query heads of each
SHAPES = [
    ([65536], 1, 1),  # one long sequence of one head
    ([16384, 512, 512, 512], 2, 1),  # a ragged batch
    ([16384], 3, 1),  # heads that do not divide among two threads
    ([8192, 8192], 4, 1),  # as many heads as keep every thread busy anyway
    ([65536], 1, 8),  # multi-query attention
]


def inputs(
    lengths: list[int], kv_heads: int, group: int, dim: int = 64, dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu", seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Int[Tensor, " batch"]]:  # fmt: skip
    """q [B,H,d], a padded cache k, v [B,kv heads,longest,d] and the lengths."""
    generator = torch.Generator(device).manual_seed(seed)
    shapes = [(len(lengths), kv_heads * group, dim)] + 2 * [(len(lengths), kv_heads, max(lengths), dim)]
    q, k, v = (torch.randn(s, generator=generator, device=device).to(dtype) for s in shapes)
    return q, k, v, torch.tensor(lengths, device=device)


def kv_bytes(lengths: list[int], kv_heads: int, dim: int, itemsize: int) -> int:
    """Bytes of keys and values that a decode step has to read."""
    return 2 * sum(lengths) * kv_heads * dim * itemsize


def cases(
    shapes: list[tuple[list[int], int, int]] = SHAPES, dim: int = 64, dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu", splits: tuple[int, ...] = (), seed: int = 0,
) -> list[Case]:  # fmt: skip
    """Every shape as lean, one unit a head, ``splits`` equal pieces of every head, and PyTorch's padded attention.

    Args:
        shapes: (lengths, key/value heads, query heads of each).
    """
    found = []
    for lengths, kv_heads, group in shapes:
        if not lengths or min(lengths) < 0 or not max(lengths) or kv_heads < 1 or group < 1:
            shape = [lengths, kv_heads, group]
            raise ValueError(f"a shape is {shape}; expected [lengths, key/value heads, query heads of each], positive")
        q, k, v, long = inputs(lengths, kv_heads, group, dim, dtype, device, seed)
        mask = None
        if min(lengths) < max(lengths):
            mask = (torch.arange(max(lengths), device=device) < long[:, None])[:, None, None]
        functions = {"lean": _call("lean", q, k, v, long), "per head": _call("per_head", q, k, v, long)}
        functions |= {f"split({n})": _call(f"split({n})", q, k, v, long) for n in splits}
        functions["torch SDPA"] = lambda q=q, k=k, v=v, mask=mask: scaled_dot_product_attention(
            q[:, :, None], k, v, mask, enable_gqa=q.shape[1] != k.shape[1]
        )
        if group > 1:
            alone = [(q[:, i : i + 1].contiguous(), k[:, :1], v[:, :1]) for i in range(group)]
            functions[f"{group} calls"] = lambda alone=alone, long=long: [
                lean_decode(q, k, v, long, schedule="lean") for q, k, v in alone
            ]
        rows = f"{len(lengths)} rows of {min(lengths)}-{max(lengths)}" if len(lengths) > 1 else f"{lengths[0]} keys"
        name = f"{rows}, {kv_heads} x {group} heads of {dim}"
        moved = kv_bytes(lengths, kv_heads, dim, q.element_size())
        found.append(Case(name, functions, 4.0 * sum(lengths) * kv_heads * group * dim, moved))
    return found


def _call(schedule: str, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor):
    return lambda: lean_decode(q, k, v, lengths, schedule=schedule)


def copy_call(device: str | torch.device = "cpu", megabytes: int = 128):
    """A large copy, whose pages are all written first, and the bytes it reads and writes."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * source.numel() * source.element_size()


def after_copies(case: Case, copy: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The case's functions, each behind a copy of its own: "copy" is the first of them.

    A copy larger than the caches leaves nothing of the keys there, as the other layers of a model do between two calls.
    Taking turns without it, every function but the first would find what the one before it had read.
    """
    functions: dict[str, Callable[[], object]] = {}
    for number, (label, function) in enumerate(case.functions.items()):
        functions[f"copy {number}" if number else "copy"] = copy
        functions[label] = function
    return functions


def bandwidth(repeats: int = 30, threads: int | None = None) -> list[dict[str, str | float]]:
    """GB/s of keys and values for every case and way, and the share of what a copy reaches in the same turns."""
    rows: list[dict[str, str | float]] = []
    with torch_threads(torch.get_num_threads() if threads is None else threads):
        for case in cases():
            copy, copied = copy_call()
            timings = interleaved(after_copies(case, copy), repeats)
            for label in case.functions:
                rate = case.bytes / timings[label].wall
                rows.append(
                    {
                        "case": case.name,
                        "computed by": label,
                        "ms": 1e3 * timings[label].wall,
                        "GB/s": rate / 1e9,
                        "% of copy": 100 * rate * timings["copy"].wall / copied,
                    }
                )
    return rows


if __name__ == "__main__":
    for row in bandwidth():
        case, way, ms, rate, share = row.values()
        print(f"{case:44s} {way:12s} {ms:8.3f} ms {rate:7.1f} GB/s {share:6.1f} % of copy")

"""What `flambeau bench gathered_attention` times: attention in chunks against full attention of the same sequence."""

from functools import partial

import torch
from torch.nn import functional as F

from flambeau.ops.bench import Case
from flambeau.ops.gathered_attention import gathered_attention


def cases(lengths: tuple[int, ...] = (1024, 4096), dim: int = 64) -> list[Case]:
    """Forward of one head whose tokens are dealt to about sqrt(T) clusters of as many tokens, each chunk seeing itself
    and the chunk before."""
    made = []
    for time in lengths:
        window = 2 ** (time.bit_length() // 2)
        q, k, v = (torch.randn(1, 1, time, dim) for _ in range(3))
        rows = torch.randperm(time).view(1, 1, -1, window).sort(-1).values
        columns = torch.cat([rows.roll(1, 2), rows], -1)
        groups = torch.zeros_like(rows), torch.zeros_like(columns)
        made.append(
            Case(
                f"T {time}, w {window}",
                {
                    "in chunks": partial(gathered_attention, q, k, v, rows, columns, *groups, causal=True),
                    "full attention": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True),
                },
                flops=2 * time * 2 * window * 2 * dim,
                bytes=4 * time * dim * 4,
            )
        )
    return made

"""``torch.nn.functional.scaled_dot_product_attention`` with lean attention where a call is a generation step."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flambeau.ops.lean_attention.decode import lean_decode

MOST_QUERIES = 16  # beyond these the work is a matrix product, at which PyTorch's attention is better


def lean_scaled_dot_product_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "batch heads queries dim"]:
    """A drop-in for PyTorch's function: same arguments, same result; lean for up to 16 queries.

    A boolean mask whose queries see a run of keys that ends with themselves (padding on either side, causal newest
    tokens) becomes starts and lengths, so that padding is not read. PyTorch's own function runs for any other mask, for
    dropout, gradients, long queries, head sizes of values other than of keys, and where the keys are on neither device.
    """
    keys = _ranges(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if keys is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    starts, lengths = keys
    queries = query.shape[2]
    everything = None
    if attn_mask is None and not is_causal and queries > 1:
        everything = query.new_ones(queries, queries, dtype=torch.bool)
    out = lean_decode(query.transpose(1, 2), key, value, lengths, scale=scale, starts=starts, tail_mask=everything)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)


def _ranges(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, gqa: bool
) -> tuple[Tensor | None, Tensor | None] | None:
    """First key and end of each row's keys (None: all of them), or None where this is not a call for lean attention."""
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape or key.shape[0] != query.shape[0]:
        return None
    queries, keys = query.shape[2], key.shape[2]
    if not 1 <= queries <= MOST_QUERIES or queries > keys or dropout or query.device.type not in ("cpu", "cuda"):
        return None
    if query.shape[1] != key.shape[1] and not gqa:
        return None
    if any(x.dtype != query.dtype or x.stride(-1) != 1 for x in (query, key, value)):
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if mask is None:
        # PyTorch aligns a causal mask with the first key, which is the same only when both ends meet.
        return None if causal and queries != keys else (None, None)
    return None if causal else key_ranges(mask, query.shape[0], queries, keys)


def key_ranges(
    mask: Bool[Tensor, "#batch #heads queries keys"], batch: int, queries: int, keys: int, window: int | None = None
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]] | None:
    """(starts, lengths) of a mask where query i of n sees keys starts .. lengths - n + i, or None for any other mask.

    With a window, query i sees the last ``window`` of these.
    """
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[2:] != (queries, keys) or mask.shape[1] != 1:
        return None
    if torch.compiler.is_compiling():
        return None
    last = mask[:, 0, -1]
    starts = mask[:, 0].any(1).to(torch.uint8).argmax(-1)
    lengths = torch.where(last.any(-1), keys - last.flip(-1).to(torch.uint8).argmax(-1), 0)
    key = torch.arange(keys, device=mask.device)
    end = lengths[:, None, None] - torch.arange(queries - 1, -1, -1, device=mask.device)[:, None]
    seen = (key >= starts[:, None, None]) & (key < end)
    if window is not None:
        seen &= key >= end - window
    if not torch.equal(seen, mask[:, 0]):
        return None
    return starts.expand(batch), lengths.expand(batch)

"""Lean attention inside models of the `transformers` package, through its attention interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flambeau.ops.lean_attention import lean_decode
from flambeau.ops.lean_attention.sdpa import MOST_QUERIES, key_ranges

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "flambeau_lean"


def use_lean_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Let a transformers model attend with ``lean_decode`` while it generates; everything else runs in PyTorch's SDPA.

    A call with up to 16 new tokens and without gradients or dropout is a generation step. Padded batches (left or
    right), static caches and sliding windows reach it as each row's first and last key, so padding is not read. Any
    mask that is not such a range runs in SDPA. Score caps and sinks, which SDPA lacks, always run in ``lean_decode``.

    Returns the model, changed in place; ``model.set_attn_implementation("sdpa")`` undoes it.
    Raises ModuleNotFoundError without transformers, ValueError for a model that does not use its attention interface.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError as error:
        raise ModuleNotFoundError("this needs the transformers package: pip install 'flambeau[hf]'") from error
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{type(model).__name__} does not use transformers' attention interface")
    AttentionInterface.register(NAME, lean_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return model


def lean_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: q, k, v [batch, heads, tokens, dim] to [batch, tokens, heads, dim]."""
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    batch, _, queries, _ = query.shape
    keys = key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    needs_lean = softcap is not None or sinks is not None
    graph = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    # Without a mask, several queries are a whole causal sequence, or see everything (encoders).
    ranges: tuple[Tensor | None, Tensor | None] | None = None
    window = None
    if attention_mask is not None:
        ranges = key_ranges(attention_mask, batch, queries, keys)
        if ranges is None and (window := kwargs.get("sliding_window")) is not None:
            ranges = key_ranges(attention_mask, batch, queries, keys, window)
    elif queries == 1 or (causal and queries == keys):
        ranges = None, None
    same = key.shape == value.shape and key.dtype == value.dtype == query.dtype and key.stride(-1) == 1
    possible = ranges is not None and same and not graph and not dropout and kwargs.get("position_bias") is None
    if possible and ranges is not None and (queries <= MOST_QUERIES or needs_lean):
        starts, lengths = ranges
        out = lean_decode(
            query.transpose(1, 2), key, value, lengths, scale=scaling, window=window, softcap=softcap,
            starts=starts, sinks=sinks,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out, None
    if needs_lean:
        raise ValueError(
            f"{type(module).__name__} caps scores or has attention sinks, which lean attention computes for inference "
            "and masks that are ranges of keys only; use attn_implementation='eager' here"
        )
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )

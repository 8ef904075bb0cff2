"""Attention of transformers models over ranks, through transformers' own interface."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

NAME = "flambeau_context"


def patch(model: nn.Module, context: Any) -> list[bool]:
    """Let the attentions of `model` use those of `context`; whether each is causal. The model no longer caches keys."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    causal = []
    own: dict[int, Any] = {}  # other models may have been made from the same configuration object
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if not hasattr(config, "_attn_implementation"):
            continue
        module.config = own.setdefault(id(config), copy.deepcopy(config))
        module.config._attn_implementation, module.config.use_cache = NAME, False
        if hasattr(module, "is_causal"):
            if getattr(module, "is_cross_attention", False):
                raise ValueError(f"{type(module).__name__}: cross-attention cannot be spread over ranks")
            object.__setattr__(module, "_context", context)
            causal.append(bool(module.is_causal))
    return causal


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called by every attention in place of ``sdpa``."""
    causal = bool(module.is_causal if is_causal is None else is_causal)
    masks: dict[str, Any] = {}
    if attention_mask is not None and attention_mask.ndim == 2:
        masks["key_mask"] = attention_mask.bool()
    elif attention_mask is not None:
        masks["bias"], causal = attention_mask, False  # a mask of all pairs already holds what is causal
    context: Any = module._context
    output = context.attend(query, key, value, causal=causal, scale=scaling, dropout_p=dropout, **masks)
    return output.transpose(1, 2).contiguous(), None


def _mask(*, mask_function: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The padding mask where attention is plainly causal or full; a mask of all pairs for everything else."""
    if mask_function in (causal_mask_function, bidirectional_mask_function):
        return attention_mask
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)

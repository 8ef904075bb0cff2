"""Routing heads in place of the self-attention of a `transformers` causal language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.nn.attention import LocalAttention, RoutingAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_MISSING = "this needs the transformers package: pip install 'flambeau[hf]'"


@dataclass(frozen=True)
class RoutingConfig:
    """Which layers get routing heads, and their sizes; plain values, kept as `routing` in the model's own config.

    layers: numbers of the layers, negative ones from the end. routing_heads: of each layer's heads, taken from the last
    ones; the others attend locally. num_clusters, window, decay, commitment: see `RoutingAttention`. local_window:
    block of the local heads.
    """

    layers: tuple[int, ...]
    routing_heads: int
    num_clusters: int = 16
    window: int = 128
    local_window: int = 128
    decay: float = 0.99
    commitment: float = 1e-2


class RoutedSelfAttention(nn.Module):
    """Stands where a decoder layer's self-attention stood: same call, same result, its weights as a start.

    Keys begin as the shared queries-and-keys of routing heads. Position codes that the old attention added to queries
    and keys (rotary) are left out: local heads learn a bias by distance, routing heads by distance inside the cluster.
    Generation keeps the state of routing in the model's own cache object; beams and other reorderings of that cache are
    not followed.
    """

    def __init__(self, old: nn.Module, hidden: int, heads: int, head_dim: int, layer_idx: int, config: RoutingConfig):
        super().__init__()
        if not 1 <= config.routing_heads <= heads:
            raise ValueError(f"routing_heads must lie in 1..{heads}, got {config.routing_heads}")
        self.layer_idx, self.local_heads = layer_idx, heads - config.routing_heads
        weights, biases = _projections(old, heads, head_dim)
        split = self.local_heads * head_dim
        self.routing = RoutingAttention(
            hidden, config.routing_heads, config.num_clusters, config.window,
            head_dim=head_dim, decay=config.decay, commitment=config.commitment, rank_bias=True, init="kmeans",
        )  # fmt: skip
        routing = self.routing.projections
        for linear, name in ((routing.query, "key"), (routing.value, "value")):
            _fill(linear, weights[name][split:], biases[name], split, None)
        _fill(routing.out, weights["out"][:, split:], biases["out"], 0, None)
        self.local: LocalAttention | None = None
        if self.local_heads:
            self.local = LocalAttention(hidden, self.local_heads, config.local_window, head_dim=head_dim)
            local = self.local.projections
            for linear, name in ((local.query, "query"), (local.key, "key"), (local.value, "value")):
                _fill(linear, weights[name][:split], biases[name], 0, split)
            _fill(local.out, weights["out"][:, :split], None, 0, None)
        self.to(device=weights["value"].device, dtype=weights["value"].dtype)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch time hidden"],
        *,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **unused: Any,
    ) -> tuple[Float[Tensor, "batch time hidden"], None]:
        """The layer's output, and None for attention weights."""
        batch, time, _ = hidden_states.shape
        past = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        mask = _padding(attention_mask, past, time)
        near = far = None
        if past_key_values is not None:
            near, far = self._caches(past_key_values, batch, past)
            # The model counts positions by the cache's length, so its slot gets one number a token.
            counted = hidden_states.new_ones(batch, 1, time, 1)
            past_key_values.update(counted, counted, self.layer_idx)
        y, _ = self.routing(hidden_states, mask=mask, cache=far)
        if self.local is not None:
            y = y + self.local(hidden_states, mask=mask, cache=near)[0]
        return y, None

    def _caches(self, holder: Any, batch: int, past: int) -> tuple[Any, Any]:
        held = vars(holder).setdefault("_routing_caches", {})
        if past == 0 or self.layer_idx not in held:
            near = None if self.local is None else self.local.new_cache(batch)
            held[self.layer_idx] = near, self.routing.new_cache(batch)
        return held[self.layer_idx]


def route_layers(model: PreTrainedModel, config: RoutingConfig) -> PreTrainedModel:
    """Replace the self-attention of `config.layers` in place, and note it as ``model.config.routing``.

    Afterwards add ``collect_aux(model)`` to the loss and train on; `load_routed` loads what ``save_pretrained`` saved.

    Raises:
        ValueError: a layer that does not exist, or a model whose attention is not laid out like GPT-2's or LLaMA's.
    """
    decoder = getattr(model, "transformer", None) or getattr(model, "model", None)
    layers = getattr(decoder, "h", None) or getattr(decoder, "layers", None)
    if layers is None:
        raise ValueError(f"model must be laid out like GPT-2 or LLaMA, got {type(model).__name__}")
    text = model.config.get_text_config(decoder=True)
    heads, hidden = text.num_attention_heads, text.hidden_size
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    for number in config.layers:
        if not -len(layers) <= number < len(layers):
            raise ValueError(f"layers must lie in 0..{len(layers) - 1}, got {number}")
        layer, position = layers[number], number % len(layers)
        name = next((name for name in ("attn", "self_attn") if hasattr(layer, name)), None)
        if name is None:
            raise ValueError(f"{type(layer).__name__} has neither attn nor self_attn")
        routed = RoutedSelfAttention(getattr(layer, name), hidden, heads, head_dim, position, config)
        setattr(layer, name, routed.train(layer.training))
    model.config.routing = asdict(config) | {"layers": list(config.layers)}
    return model


def load_routed(folder: str | Path, *, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model that ``save_pretrained`` wrote to a folder after `route_layers`; reads safetensors only.

    Raises:
        ValueError: the folder's config has no routing, or its weights are not those of the model.
    """
    try:
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ModuleNotFoundError(HF_MISSING) from error
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    if not isinstance(getattr(config, "routing", None), dict):
        raise ValueError(f"{folder} holds a model without routing; load it with transformers and call route_layers")
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    route_layers(model, RoutingConfig(**{**config.routing, "layers": tuple(config.routing["layers"])}))
    saved: dict[str, Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        saved |= load_file(path)
    missing, unexpected = model.load_state_dict(saved, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise ValueError(f"{folder}: weights missing {sorted(set(missing) - tied)[:3]}, unexpected {unexpected[:3]}")
    return model.to(device).eval()


def _projections(old: nn.Module, heads: int, head_dim: int) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Weights [out, in] and biases of the old attention, with as many keys and values as heads."""
    if hasattr(old, "c_attn"):
        weights = dict(zip(("query", "key", "value"), old.c_attn.weight.detach().T.chunk(3)))
        biases = dict(zip(("query", "key", "value"), old.c_attn.bias.detach().chunk(3)))
        return weights | {"out": old.c_proj.weight.detach().T}, biases | {"out": old.c_proj.bias.detach()}
    if not hasattr(old, "q_proj"):
        raise ValueError(f"{type(old).__name__} has neither c_attn nor q_proj")
    parts = {"query": old.q_proj, "key": old.k_proj, "value": old.v_proj, "out": old.o_proj}
    weights = {name: part.weight.detach() for name, part in parts.items()}
    biases = {name: None if part.bias is None else part.bias.detach() for name, part in parts.items()}
    for name in ("key", "value"):  # grouped queries share a key: give each its own copy
        groups = weights[name].shape[0] // head_dim
        repeat = heads // groups
        weights[name] = weights[name].unflatten(0, (groups, head_dim)).repeat_interleave(repeat, 0).flatten(0, 1)
        bias = biases[name]
        if bias is not None:
            biases[name] = bias.unflatten(0, (groups, head_dim)).repeat_interleave(repeat, 0).flatten(0, 1)
    return weights, biases


def _fill(linear: nn.Linear, weight: Tensor, bias: Tensor | None, first: int, end: int | None) -> None:
    """Give a projection its weight, and rows first..end of a bias if there is one."""
    linear.weight = nn.Parameter(weight.clone())
    linear.bias = None if bias is None else nn.Parameter(bias[first:end].clone())


def _padding(attention_mask: Tensor | None, past: int, time: int) -> Tensor | None:
    """Which of the new tokens are real, from the model's mask [batch, 1, time, total] (additive or boolean)."""
    if attention_mask is None:
        return None
    if attention_mask.ndim == 2:
        return attention_mask[:, past : past + time].bool()
    last = attention_mask[:, 0, -1, past : past + time]
    return last if last.dtype == torch.bool else last == 0

"""GPT-2, BERT and Llama of transformers as this library's models, and back: the same function, laid out anew.

transformers keeps queries, keys and values of all heads behind one another; here they lie head by head, so that a
slice holds whole heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flambeau.models.language.bert import BERT
from flambeau.models.language.decoder import Decoder
from flambeau.models.language.gpt import GPT
from flambeau.models.language.transformer import MLP
from flambeau.nn.rotary import Rotary, line_coordinates


class TanhMLP(MLP):
    """`MLP` with GPT-2's approximation of GELU by tanh."""

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def gpt_from_transformers(source: Any) -> GPT:
    """A transformers ``GPT2LMHeadModel`` as a `GPT`. Raises ValueError for what a GPT-2 of OpenAI's has not."""
    config, weights = source.config, source.state_dict()
    _refuse(
        config, {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "scale_attn_weights": True}
    )
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
        raise ValueError(f"activation_function must be gelu or gelu_new, got {config.activation_function!r}")
    model = GPT(
        config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head, hidden=config.n_inner,
        dropout=config.resid_pdrop, tie=config.tie_word_embeddings,
    )  # fmt: skip
    state = {
        "embedding.weight": weights["transformer.wte.weight"],
        "position.weight": weights["transformer.wpe.weight"],
        "norm.weight": weights["transformer.ln_f.weight"],
        "norm.bias": weights["transformer.ln_f.bias"],
        "head.weight": weights["lm_head.weight"],
    }
    for layer, block in enumerate(model.blocks):
        if config.activation_function != "gelu":
            block.mlp.__class__ = TanhMLP
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            state[f"{ours}attention_norm.{kind}"] = weights[f"{theirs}ln_1.{kind}"]
            state[f"{ours}mlp_norm.{kind}"] = weights[f"{theirs}ln_2.{kind}"]
            state[f"{ours}attention.qkv.{kind}"] = by_heads(
                _flipped(weights[f"{theirs}attn.c_attn.{kind}"]), config.n_head
            )
            state[f"{ours}attention.out.{kind}"] = _flipped(weights[f"{theirs}attn.c_proj.{kind}"])
            state[f"{ours}mlp.up.{kind}"] = _flipped(weights[f"{theirs}mlp.c_fc.{kind}"])
            state[f"{ours}mlp.down.{kind}"] = _flipped(weights[f"{theirs}mlp.c_proj.{kind}"])
    return _filled(model, state, config.layer_norm_epsilon, source)  # type: ignore[return-value]


def gpt_to_transformers(model: GPT, vocab: int | None = None) -> Any:
    """A `GPT` with whole weights as transformers' ``GPT2LMHeadModel``.

    vocab: tokens that are kept of a vocabulary that was padded. Raises ValueError for norms behind the sums, or more
    tokens than there are.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if isinstance(model.norm, nn.Identity):
        raise ValueError("GPT-2 has its norms before each part, got a model with norm='post'")
    vocab = model.vocab if vocab is None else vocab
    if not 0 < vocab <= model.vocab:
        raise ValueError(f"vocab must lie in 1..{model.vocab}, got {vocab}")
    first = model.blocks[0]
    heads = first.attention.qkv.out_features // (3 * first.attention.head_dim)
    tied = model.head.weight is model.embedding.weight
    config = GPT2Config(
        vocab_size=vocab, n_positions=model.length, n_embd=model.embedding.embedding_dim, n_layer=len(model.blocks),
        n_head=heads, n_inner=first.mlp.up.out_features, layer_norm_epsilon=model.norm.eps, tie_word_embeddings=tied,
        activation_function="gelu_new" if isinstance(first.mlp, TanhMLP) else "gelu", resid_pdrop=model.dropout.p,
        embd_pdrop=model.dropout.p, attn_pdrop=first.attention.core.dropout, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    weights = model.state_dict()
    state = {
        "transformer.wte.weight": weights["embedding.weight"][:vocab],
        "transformer.wpe.weight": weights["position.weight"],
        "transformer.ln_f.weight": weights["norm.weight"],
        "transformer.ln_f.bias": weights["norm.bias"],
        "lm_head.weight": weights["head.weight"][:vocab],
    }
    for layer in range(len(model.blocks)):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            state[f"{theirs}ln_1.{kind}"] = weights[f"{ours}attention_norm.{kind}"]
            state[f"{theirs}ln_2.{kind}"] = weights[f"{ours}mlp_norm.{kind}"]
            state[f"{theirs}attn.c_attn.{kind}"] = _flipped(by_thirds(weights[f"{ours}attention.qkv.{kind}"], heads))
            state[f"{theirs}attn.c_proj.{kind}"] = _flipped(weights[f"{ours}attention.out.{kind}"])
            state[f"{theirs}mlp.c_fc.{kind}"] = _flipped(weights[f"{ours}mlp.up.{kind}"])
            state[f"{theirs}mlp.c_proj.{kind}"] = _flipped(weights[f"{ours}mlp.down.{kind}"])
    return _filled(GPT2LMHeadModel(config), state, None, model)


_BERT = {  # ours: theirs
    "embedding": "bert.embeddings.word_embeddings",
    "position": "bert.embeddings.position_embeddings",
    "segment": "bert.embeddings.token_type_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "pooler": "bert.pooler.dense",
    "order": "cls.seq_relationship",
}
_BERT_LAYER = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def bert_from_transformers(source: Any) -> BERT:
    """A transformers ``BertForPreTraining`` as a `BERT` with norms behind the sums; its second head, which tells next
    sentences, becomes that of the order. Raises ValueError for another activation than GELU."""
    config, weights = source.config, source.state_dict()
    _refuse(config, {"hidden_act": "gelu", "is_decoder": False, "tie_word_embeddings": True})
    model = BERT(
        config.vocab_size, config.max_position_embeddings, config.hidden_size, config.num_hidden_layers,
        config.num_attention_heads, hidden=config.intermediate_size, dropout=config.hidden_dropout_prob, norm="post",
        segments=config.type_vocab_size,
    )  # fmt: skip
    state = {}
    for name in model.state_dict():
        part, _, kind = name.rpartition(".")
        if part in _BERT:
            state[name] = weights[f"{_BERT[part]}.{kind}"]
            continue
        _, layer, part = part.split(".", 2)
        theirs = f"bert.encoder.layer.{layer}."
        if part == "attention.qkv":
            parts = [weights[f"{theirs}attention.self.{one}.{kind}"] for one in ("query", "key", "value")]
            state[name] = by_heads(torch.cat(parts), config.num_attention_heads)
        else:
            state[name] = weights[f"{theirs}{_BERT_LAYER[part]}.{kind}"]
    return _filled(model, state, config.layer_norm_eps, source)  # type: ignore[return-value]


def bert_to_transformers(model: BERT) -> Any:
    """A `BERT` with norms behind the sums as transformers' ``BertForPreTraining``; ValueError for norm="pre"."""
    from transformers import BertConfig, BertForPreTraining

    if isinstance(model.embedding_norm, nn.Identity):
        raise ValueError("BERT of transformers has its norms behind the sums, got a model with norm='pre'")
    first = model.blocks[0]
    heads = first.attention.qkv.out_features // (3 * first.attention.head_dim)
    config = BertConfig(
        vocab_size=model.vocab, max_position_embeddings=model.length, hidden_size=model.embedding.embedding_dim,
        num_hidden_layers=len(model.blocks), num_attention_heads=heads, intermediate_size=first.mlp.up.out_features,
        hidden_dropout_prob=model.dropout.p, attention_probs_dropout_prob=first.attention.core.dropout,
        type_vocab_size=model.segment.num_embeddings, layer_norm_eps=model.embedding_norm.eps, hidden_act="gelu",
    )  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part in _BERT:
            state[f"{_BERT[part]}.{kind}"] = tensor
            continue
        _, layer, part = part.split(".", 2)
        theirs = f"bert.encoder.layer.{layer}."
        if part == "attention.qkv":
            for one, third in zip(("query", "key", "value"), by_thirds(tensor, heads).chunk(3), strict=True):
                state[f"{theirs}attention.self.{one}.{kind}"] = third
        else:
            state[f"{theirs}{_BERT_LAYER[part]}.{kind}"] = tensor
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    return _filled(BertForPreTraining(config), state, None, model)


def decoder_from_transformers(source: Any) -> Decoder:
    """A transformers ``LlamaForCausalLM`` as a `Decoder`. Raises ValueError for biases or scaled rotary angles."""
    config, weights = source.config, source.state_dict()
    _refuse(config, {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"})
    rotary = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta, "rope_type": "default"}
    if rotary.get("rope_type", "default") != "default":
        raise ValueError(f"rotary angles must be unscaled, got rope_type {rotary['rope_type']!r}")
    model = Decoder(
        config.vocab_size, config.max_position_embeddings, config.hidden_size, config.num_hidden_layers,
        config.num_attention_heads, kv_heads=config.num_key_value_heads, hidden=config.intermediate_size,
    )  # fmt: skip
    head_dim = config.hidden_size // config.num_attention_heads
    if getattr(config, "head_dim", head_dim) not in (None, head_dim):
        raise ValueError(f"head_dim must be hidden_size / num_attention_heads = {head_dim}, got {config.head_dim}")
    coordinates = line_coordinates(config.max_position_embeddings)
    model.rotary = Rotary(head_dim, coordinates, rotary["rope_theta"])
    state = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
        "head.weight": weights["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}.", f"blocks.{layer}."
        state[f"{ours}attention_norm.weight"] = weights[f"{theirs}input_layernorm.weight"]
        state[f"{ours}mlp_norm.weight"] = weights[f"{theirs}post_attention_layernorm.weight"]
        joined = {
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.out": ("self_attn.o_proj",),
            "mlp.gate_and_up": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.out": ("mlp.down_proj",),
        }
        for name, parts in joined.items():
            state[f"{ours}{name}.weight"] = torch.cat([weights[f"{theirs}{part}.weight"] for part in parts])
    return _filled(model, state, config.rms_norm_eps, source)  # type: ignore[return-value]


def by_heads(thirds: Float[Tensor, rows * rest], heads: int) -> Float[Tensor, rows * rest]:
    """Rows [all queries, all keys, all values] as [queries, keys and values of head 0, of head 1, ...]."""
    return thirds.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def by_thirds(heads_first: Float[Tensor, rows * rest], heads: int) -> Float[Tensor, rows * rest]:
    """The inverse of `by_heads`."""
    return heads_first.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _flipped(tensor: Tensor) -> Tensor:
    """GPT-2's weights are transposed, its biases are not."""
    return tensor.T if tensor.ndim == 2 else tensor


def _refuse(config: Any, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"{name} must be {value!r}, got {getattr(config, name)!r}")


def _filled(model: nn.Module, state: dict[str, Tensor], eps: float | None, source: nn.Module) -> nn.Module:
    parameter = next(source.parameters())
    model = model.to(parameter.device, parameter.dtype)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
    if eps is not None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.eps = eps
    return model.train(source.training)

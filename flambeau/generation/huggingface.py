"""Drive causal models of the `transformers` package with the decoders of this package."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from flambeau.generation.processors import PerSlot
from flambeau.generation.spatial_init import SpatialInit
from flambeau.generation.speculative_jacobi import SpeculativeJacobi
from flambeau.generation.verification import Redraw
from flambeau.nn.kv_cache import Append, KVCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_MISSING = "this needs the transformers package: pip install 'flambeau[hf]'"


class HFModel:
    """A transformers causal LM as the `CausalModel` the decoders expect; the model itself is not touched.

    The model's own cache grows in lock-step over the batch, so it is replaced by one over `KVCache`, whose rows are cut
    back one by one. That is possible where the model would use a plain `DynamicCache`.

    Raises ValueError, naming the cache class, for models whose state cannot be truncated per row (recurrent, sliding
    window, static), and for models that do not take position_ids.
    """

    def __init__(self, model: PreTrainedModel):
        _require_truncatable(model)
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"{type(model).__name__}.forward takes no position_ids, rows cannot have their own lengths"
            )
        config = model.config.get_text_config(decoder=True)
        implementation = getattr(model.config, "_attn_implementation", "eager")
        if implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"attention implementation must be 'sdpa' or 'eager' to take a mask, got {implementation!r}"
            )
        self.model = model
        self.vocab = self.input_vocab = int(config.vocab_size)
        self.length: int | None = getattr(config, "max_position_embeddings", None)
        self._layers = int(config.num_hidden_layers)
        self._boolean_mask = implementation == "sdpa"

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(self._layers, batch, capacity)

    def __call__(
        self, tokens: Tensor, *, positions: Tensor | None, cache: KVCache, keep: int
    ) -> Float[Tensor, "batch kept vocab"]:
        append = cache.begin(tokens.shape[1], tokens.device)
        logits = self.model(
            input_ids=tokens,
            attention_mask=self._mask(append, tokens.shape[0]),
            position_ids=append.positions if positions is None else positions,
            past_key_values=_bridge(cache, append),
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        cache.commit(append)
        return logits[:, -keep:]

    def _mask(self, append: Append, batch: int) -> Tensor | None:
        """Visible keys as this attention takes them; None where the model's own causal mask is right."""
        if append.mask is None:
            return None
        visible = append.mask.expand(batch, -1, -1, -1)
        if self._boolean_mask:
            return visible
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device).masked_fill(~visible, lowest)


def wrap(model: PreTrainedModel) -> HFModel:
    """The model as decoders expect it: `SpeculativeJacobi(16).generate(wrap(model), input_ids, 64)`."""
    return HFModel(model)


def load(path: str | Path, *, device: torch.device | str = "cpu", dtype: str = "auto") -> HFModel:
    """A causal LM from a local folder or the hub, safetensors only, running no code of its repository."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ImportError(HF_MISSING) from error
    model = AutoModelForCausalLM.from_pretrained(
        str(path), dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa"
    )
    return HFModel(model.to(device).eval())


def read_prompts(path: str | Path, folder: str | Path | None = None) -> list[list[int]]:
    """Prompts of a JSON file: a list of token-id lists, or of texts for the tokenizer saved in `folder`.

    A COCO captions file (an object with "annotations", each with a "caption") is read as its captions.
    Raises ValueError for anything else.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = [annotation.get("caption") for annotation in content["annotations"]]
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} must hold a list of prompts, got {type(content).__name__}")
    if all(isinstance(prompt, str) for prompt in content):
        if folder is None:
            raise ValueError(f"{path} holds texts, which need the folder of a tokenizer")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return [tokenizer(prompt)["input_ids"] for prompt in content]
    if not all(isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt) for prompt in content):
        raise ValueError(f"{path} must hold texts, or non-empty lists of token ids")
    return content


def pad_left(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token-id lists as prompt [batch, longest] and its mask."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return tokens, mask


def speculative_jacobi(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    window: int = 16,
    init: SpatialInit | None = None,
    redraw: Redraw = "independent",
    seed: int | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """For `model.generate(ids, custom_generate=speculative_jacobi, do_sample=True, window=16, ...)`.

    The logits processors transformers prepared (temperature, top-k, repetition penalty, ...) run at every window slot.
    Greedy generation uses the deterministic scheme. Stopping: length and one end-of-sequence token; other criteria,
    guidance_scale, beams, scores and dict outputs raise ValueError. seed: default from torch's global generator.
    """
    for name in ("guidance_scale", "output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(generation_config, name, None) not in (None, False, 1, 1.0):
            raise ValueError(f"speculative_jacobi does not support {name}={getattr(generation_config, name)}")
    if generation_config.num_beams not in (None, 1) or generation_config.return_dict_in_generate:
        raise ValueError("speculative_jacobi supports num_beams=1 and plain tensor output")
    supported = {"MaxLengthCriteria", "EosTokenCriteria"}
    unknown = [type(c).__name__ for c in stopping_criteria or () if type(c).__name__ not in supported]
    if unknown:
        raise ValueError(f"speculative_jacobi stops at a length or an end token, got {', '.join(unknown)}")
    ends = generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if len(ends) > 1:
        raise ValueError(f"speculative_jacobi supports one end-of-sequence token, got {ends}")
    decoder = SpeculativeJacobi(window, init, "speculative" if generation_config.do_sample else "jacobi", redraw)
    mask = model_kwargs.get("attention_mask")
    return decoder.generate(
        HFModel(model),
        input_ids,
        int(generation_config.max_length) - input_ids.shape[1],
        processors=tuple(PerSlot(processor) for processor in logits_processor or ()),
        prompt_mask=None if mask is None else mask.bool(),
        eos_id=ends[0] if ends else None,
        pad_id=generation_config.pad_token_id,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    ).tokens


def _require_truncatable(model: PreTrainedModel) -> None:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; its EncoderDecoderCache is not supported")
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        own = next((p for p in inspect.signature(model.forward).parameters if p.startswith("cache")), "none")
        raise ValueError(f"{name} keeps no truncatable DynamicCache (its cache argument: {own})")
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{name} is stateful: its cache {type(DynamicCache(config=model.config)).__name__} cannot be truncated"
        )
    others = {
        type(layer).__name__ for layer in DynamicCache(config=model.config).layers if type(layer) is not DynamicLayer
    }
    if others:
        raise ValueError(f"{name} keeps {', '.join(sorted(others))} in its cache, which cannot be truncated per row")


def _bridge(cache: KVCache, append: Append) -> Any:
    """A transformers cache of one forward, writing through to `cache`."""
    from transformers.cache_utils import Cache

    layer_class = _bridge_layer()
    return Cache(layers=[layer_class(cache, append, layer) for layer in range(cache.layers)])


@functools.cache
def _bridge_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class BridgeLayer(DynamicLayer):
        def __init__(self, cache: KVCache, append: Append, layer: int):
            super().__init__()
            self.cache, self.append, self.layer = cache, append, layer

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return self.cache.write(self.layer, key_states, value_states, self.append)

        def get_seq_length(self) -> int:
            return self.append.span - self.append.positions.shape[1]

    return BridgeLayer

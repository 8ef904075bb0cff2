"""A pretrained language model with routing heads in its upper half, against itself, both trained on."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flambeau.data import Batches, text_file, token_windows
from flambeau.experiment.attention.language import Windows, bits
from flambeau.models.language.routing_huggingface import HF_MISSING, RoutingConfig, route_layers
from flambeau.nn.attention import collect_aux
from flambeau.training import Trainer


def measure_pretrained(run: Any, name: str, data: str, context: int, batch_size: int, trainer: Trainer) -> None:
    """Train the model on the text as it is and with routing heads; the latter is saved as ``model/``, to be loaded by
    `flambeau.models.language.routing_huggingface.load_routed`.

    Raises:
        ValueError: a name that is not hf:..., or a text too short for one window.
    """
    if not name.startswith("hf:"):
        raise ValueError(f"model must be hf:FOLDER or hf:NAME, got {name!r}")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ModuleNotFoundError(HF_MISSING) from error
    tokenizer = AutoTokenizer.from_pretrained(name[3:], trust_remote_code=False)
    plain = AutoModelForCausalLM.from_pretrained(name[3:], use_safetensors=True, trust_remote_code=False)
    config = plain.config.get_text_config(decoder=True)
    context = min(context, getattr(config, "max_position_embeddings", None) or context)
    tokens = torch.tensor(tokenizer(text_file(data), verbose=False)["input_ids"])
    held_out = max(len(tokens) // 20, context + 1)
    train, test = tokens[:-held_out], token_windows(tokens[-held_out:], context)[:16]

    heads, layers = config.num_attention_heads, config.num_hidden_layers
    window = max(8, context // 16)
    choice = RoutingConfig(
        tuple(range(layers // 2, layers)), max(1, heads // 2), max(2, context // window), window, local_window=window
    )
    rows, figures = [], {}
    for kind, model in (("as it was", plain), ("routing heads", route_layers(copy.deepcopy(plain), choice))):
        model = model.to(run.device)
        with torch.no_grad():  # centroids start from a batch seen in training mode
            model.train()(input_ids=train[None, :context].to(run.device), use_cache=False)
        before = _nats(model.eval(), test)
        trainer.fit(
            model, _loss, Batches(Windows(train, context), batch_size), folder=run.folder / "train" / f"model {kind}",
            progress=run.progress, seed=run.seed,
        )  # fmt: skip
        figures[kind] = bits(_nats(model, test))
        rows.append({"model": kind, "bits a token before": bits(before), "after": figures[kind]})
    model.save_pretrained(run.folder / "model")
    tokenizer.save_pretrained(run.folder / "model")
    ours, theirs = figures["routing heads"], figures["as it was"]
    run.measure("own_model", ours=ours, baseline=theirs, value=ours - theirs)
    run.table("pretrained model", rows)
    run.note(f"Layers {choice.layers[0]} to {layers - 1} have {choice.routing_heads} routing heads of {heads}.")


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) + collect_aux(model)


@torch.no_grad()
def _nats(model: nn.Module, windows: Tensor) -> float:
    device = next(model.parameters()).device
    return sum(_loss(model, window[None].to(device)).item() for window in windows) / len(windows)

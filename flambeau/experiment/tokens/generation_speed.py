"""Tokens per second of a transformers model with lean attention and with PyTorch's, on a ragged batch of prompts."""

from __future__ import annotations

import time

import torch

from flambeau.generation.huggingface_attention import use_lean_attention


def time_generation(
    model: str, context: int, new_tokens: int, device: torch.device, seed: int, turns: int = 3
) -> tuple[float, float, float]:
    """(tokens per second with lean attention, with SDPA, share of equal tokens); greedy, the best of interleaved turns.

    model: "hf:FOLDER" or "hf:NAME". context: longest of four left-padded prompts of random tokens.
    Raises ValueError for another form of model or a context the model has no positions for.
    """
    if not model.startswith("hf:"):
        raise ValueError(f"model is {model!r}; expected hf:FOLDER or hf:NAME")
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model[3:], trust_remote_code=False).to(device).eval()
    config = network.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    if context < 4 or (most is not None and context + new_tokens > most):
        raise ValueError(f"context is {context} and new_tokens {new_tokens}; expected 4 or more, up to {most} together")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, int(config.vocab_size), (4, context), generator=generator).to(device)
    lengths = torch.tensor([context, context // 4, context // 4, context // 4], device=device)
    mask = (torch.arange(context, device=device) >= context - lengths[:, None]).long()
    counts = (1, new_tokens + 1)  # the difference leaves the prompt's forward out
    best = {(way, count): float("inf") for way in ("lean", "sdpa") for count in counts}
    found = {}
    for turn in range(turns + 1):
        for way in ("lean", "sdpa"):
            if way == "lean":
                use_lean_attention(network)
            else:
                network.set_attn_implementation("sdpa")
            for count in counts:
                began = time.perf_counter()
                found[way] = network.generate(
                    tokens, attention_mask=mask, min_new_tokens=count, max_new_tokens=count, do_sample=False,
                    pad_token_id=0, eos_token_id=None,
                )  # fmt: skip
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    best[way, count] = min(best[way, count], time.perf_counter() - began)
    same = (found["lean"][:, context:] == found["sdpa"][:, context:]).float().mean().item()
    lean, sdpa = (best[way, counts[1]] - best[way, 1] for way in ("lean", "sdpa"))
    if min(lean, sdpa) <= 0:
        raise ValueError(f"new_tokens is {new_tokens}: too few to be timed beside the prompt")
    return 4 * new_tokens / lean, 4 * new_tokens / sdpa, same

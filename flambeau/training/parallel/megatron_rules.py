"""Which layers of known transformers are split how: Megatron-LM's placements, by module name."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from flambeau.training.parallel.plan import Rule


@dataclass(frozen=True)
class Family:
    """Models whose modules have the same names.

    rules: placements; the first one is what a model is known by. sequence: those that sequence parallelism adds, or
    None where the model's own code cannot work on a part of the sequence. attention: glob of the modules within which
    random numbers belong to the heads of one rank. shared_dropout: within them, what all ranks draw alike.
    """

    rules: tuple[Rule, ...]
    sequence: tuple[Rule, ...] | None
    attention: str
    shared_dropout: str | None = None


def _rules(**globs: str) -> tuple[Rule, ...]:
    return tuple(Rule(glob, style) for style, names in globs.items() for glob in names.split())  # type: ignore[arg-type]


FLAMBEAU = Family(
    _rules(column="*blocks.*.attention.qkv *blocks.*.mlp.up", row="*blocks.*.attention.out *blocks.*.mlp.down")
    + _rules(vocab="embedding", head="head"),
    _rules(sequence="*blocks.*.attention_norm *blocks.*.mlp_norm position segment embedding_norm norm"),
    "*blocks.*.attention.core",
)
GPT2 = Family(
    _rules(column="*h.*.attn.c_attn *h.*.mlp.c_fc", row="*h.*.attn.c_proj *h.*.mlp.c_proj")
    + _rules(vocab="*wte", head="lm_head"),
    None,
    "*h.*.attn",
    "resid_dropout",
)
BERT = Family(
    _rules(
        column="*layer.*.attention.self.query *layer.*.attention.self.key *layer.*.attention.self.value "
        "*layer.*.intermediate.dense",
        row="*layer.*.attention.output.dense *layer.*.output.dense",
        vocab="*embeddings.word_embeddings",
        head="cls.predictions.decoder",
    ),
    None,
    "*layer.*.attention.self",
)
LLAMA = Family(
    _rules(
        column="*layers.*.self_attn.q_proj *layers.*.self_attn.k_proj *layers.*.self_attn.v_proj "
        "*layers.*.mlp.gate_proj *layers.*.mlp.up_proj",
        row="*layers.*.self_attn.o_proj *layers.*.mlp.down_proj",
        vocab="*embed_tokens",
        head="lm_head",
    ),
    None,
    "*layers.*.self_attn",
)


def family_of(model: nn.Module) -> Family | None:
    """The family whose first rule fits a module of `model`; None if it is of none."""
    names = [name for name, _ in model.named_modules()]
    for family in (FLAMBEAU, GPT2, BERT, LLAMA):
        if any(fnmatchcase(name, family.rules[0].module) for name in names):
            return family
    return None


def matching(model: nn.Module, glob: str) -> dict[str, nn.Module]:
    """Modules of `model` whose name fits `glob`."""
    return {name: module for name, module in model.named_modules() if name and fnmatchcase(name, glob)}

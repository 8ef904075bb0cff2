"""How a model is spread over processes: one description, without any torch object in it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from flambeau.training.parallel.mesh import MeshSpec


@dataclass(frozen=True)
class Rule:
    """How the parameters of some modules lie on the tensor-parallel axis.

    module: glob over fully qualified module names, for example ``"blocks.*.mlp.up"``.
    style: "column" splits the output features of a linear layer and leaves its output split; "row" splits its input
    features and sums the partial outputs; "vocab" splits the rows of an embedding; "head" is "column" for an output
    layer whose logits stay split for the vocabulary-parallel cross entropy; "sequence" lets a norm work on a part of
    the sequence.
    """

    module: str
    style: Literal["column", "row", "vocab", "head", "sequence"]

    def __post_init__(self) -> None:
        if self.style not in ("column", "row", "vocab", "head", "sequence"):
            raise ValueError(f"style must be column, row, vocab, head or sequence, got {self.style!r}")


@dataclass(frozen=True)
class ContextSpec:
    """How attention is completed when each rank holds a part of the sequence.

    mode: "blockwise" and "two_phase" send keys and values around a ring (Li et al. 2023, arXiv 2105.13120; two_phase
    keeps whole rows of scores, as published), "ulysses" exchanges sequence for heads (Jacobs et al. 2023,
    arXiv 2309.14509). balance: "zigzag" gives every rank an early and a late part, so that causal work is even.
    region: "blocks" splits the hidden states at the first block and joins them after the last, for any model with a
    list of blocks; "input" expects the model's inputs to be split already, which also divides embedding and loss.
    """

    mode: Literal["blockwise", "two_phase", "ulysses"] = "blockwise"
    balance: Literal["none", "zigzag"] = "none"
    region: Literal["blocks", "input"] = "blocks"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", ("blockwise", "two_phase", "ulysses")),
            ("balance", ("none", "zigzag")),
            ("region", ("blocks", "input")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"context.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class ParallelPlan:
    """Where the parts of a model, its data and its optimiser lie.

    mesh: processes along each axis. placements: of the tensor-parallel axis: "megatron" (Shoeybi et al. 2019,
    arXiv 1909.08053), "megatron_sp" (with the norms split over the sequence, Korthikanti et al. 2022,
    arXiv 2205.05198), or rules of your own. context: how the cp axis completes attention.
    """

    mesh: MeshSpec = field(default_factory=MeshSpec)
    placements: Literal["megatron", "megatron_sp"] | tuple[Rule, ...] = "megatron"
    context: ContextSpec = field(default_factory=ContextSpec)

    def __post_init__(self) -> None:
        if isinstance(self.placements, str):
            if self.placements not in ("megatron", "megatron_sp"):
                raise ValueError(f"placements must be 'megatron', 'megatron_sp' or rules, got {self.placements!r}")
        else:
            object.__setattr__(self, "placements", tuple(self.placements))

    @classmethod
    def from_string(cls, text: str) -> ParallelPlan:
        """Read a plan such as ``"fsdp2 x tp2"``, ``"dp2 x cp4 zigzag"`` or ``"fsdp x tp4, megatron_sp"``.

        Axes: dp (replicas), fsdp (sharded; without a number what is left of the world), cp, tp. Words: megatron,
        megatron_sp, blockwise, two_phase, ulysses, zigzag, blocks, input. Raises ValueError naming what it cannot read.
        """
        names = {"dp": "dp_replicate", "fsdp": "dp_shard", "cp": "cp", "tp": "tp"}
        sizes: dict[str, int] = {}
        placements: Any = "megatron"
        context: dict[str, Any] = {}
        for word in re.split(r"[\s,]+|(?<=\d)x(?=[a-z])", text.strip()):
            axis = re.fullmatch(r"(dp|fsdp|cp|tp)(\d+)?", word)
            if word in ("", "x"):
                continue
            if axis and (axis[2] or axis[1] == "fsdp"):
                if names[axis[1]] in sizes:
                    raise ValueError(f"plan {text!r}: {axis[1]} is given twice")
                sizes[names[axis[1]]] = int(axis[2]) if axis[2] else -1
            elif word in ("megatron", "megatron_sp"):
                placements = word
            elif word in ("blockwise", "two_phase", "ulysses"):
                context["mode"] = word
            elif word == "zigzag":
                context["balance"] = word
            elif word in ("blocks", "input"):
                context["region"] = word
            else:
                raise ValueError(f"plan {text!r}: cannot read {word!r}; axes are dp2, fsdp or fsdp2, cp2, tp2")
        return cls(MeshSpec(**sizes), placements, ContextSpec(**context))

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ParallelPlan:
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        try:
            data = json.loads(text)
            placements = data.pop("placements", "megatron")
            if not isinstance(placements, str):
                placements = tuple(Rule(**rule) for rule in placements)
            mesh, context = MeshSpec(**data.pop("mesh", {})), ContextSpec(**data.pop("context", {}))
            return cls(mesh=mesh, placements=placements, context=context, **data)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a parallel plan: {error}") from None

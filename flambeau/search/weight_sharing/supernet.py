"""Weight sharing: one super-network for all programs of a space (Pham et al. 2018, "ENAS"; Liu et al. 2019, "DARTS").

supernet = Supernet(program)              # a symbolic module with hyper values in it
supernet.choose(dna); supernet(x)         # ENAS: one child, with the shared weights
supernet.relax(); supernet(x)             # DARTS: the mixture of all, differentiable in `supernet.logits`
child = extract(supernet, dna)            # an ordinary module with a copy of its weights
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.search.weight_sharing.elastic import Elastic, ElasticRepeat, Repeat, Scalar, Size, Switch, softmax_weights
from flambeau.symbolic import DNA, Node, build, template
from flambeau.symbolic.hyper import Hyper, IntValue, OneOf, is_lazy
from flambeau.symbolic.tree import MISSING, Tree, copy_value

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SIZES: dict[type, tuple[str, str]] = {
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(CONVOLUTIONS, ("in_channels", "out_channels")),
    **dict.fromkeys(NORMS, ("num_features", "num_features")),
}


class Supernet(nn.Module):
    """All modules that a symbolic program can build, in one.

    `oneof(modules)` becomes a switch. In `nn.Linear`, convolutions and batch norms, `oneof`/`intv` widths become masks
    and kernel sizes masks on the weight; `times` of a `Repeat` a depth. Other numbers of a `torch.nn` module make a
    switch of it; those of other modules become a `Scalar`, which multiplies and adds like a number.

    Hyper values of one name are one decision; give the `in` width of a layer the name of the `out` width before it.

    Attributes:
        spec: the space of the program.
        logits: decision -> parameters of its softmax, used when relaxed.

    Raises:
        ValueError: a hyper value that cannot be lowered (float, several choices, evolving, lazy), with its path.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.template = template(program)
        self.spec = self.template.spec
        self.logits = nn.ParameterDict()
        self._names: dict[str, str] = {}  # decision -> key in `logits`, which must have no dots
        self._chosen: dict[str, int] | None = None
        module = self._lower(self.template.value)
        if not isinstance(module, nn.Module):
            raise ValueError(f"program: expected one that builds a module, got {type(module).__name__}")
        self.module = module

    def forward(self, *inputs):
        """What the chosen child returns, or the mixture."""
        return self.module(*inputs)

    def choose(self, dna: DNA) -> None:
        """Use the child of `dna` from now on."""
        self.spec.validate(dna)
        self._chosen = {decision.name: value for decision, value in self.spec.decisions(dna)}  # type: ignore[misc]

    def relax(self) -> None:
        """Use the mixture of all children from now on."""
        self._chosen = None

    def architecture_parameters(self) -> list[nn.Parameter]:
        """The logits, one a decision."""
        return list(self.logits.values())

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but the logits."""
        return list(self.module.parameters())

    def derive(self) -> DNA:
        """The DNA of the most probable options."""
        walk = self.spec.grow()
        try:
            decision = next(walk)
            while True:
                decision = walk.send(int(self.logits[self._names[decision.name]].argmax()))
        except StopIteration as end:
            return end.value

    def _weights(self, decision: str) -> list[tuple[int, float | Tensor]]:
        if self._chosen is not None:
            return [(self._chosen[decision], 1.0)]
        return softmax_weights(self.logits[self._names[decision]])  # type: ignore[return-value]

    def _decision(self, hyper: Hyper) -> str:
        name = hyper.label or hyper.path
        if name not in self._names:
            self._names[name] = f"decision{len(self._names)}"
            self.logits[self._names[name]] = nn.Parameter(1e-3 * torch.randn(len(_options(hyper))))
        return name

    def _size(self, value: Any) -> Size:
        if not isinstance(value, Hyper):
            return Size([value])
        decision = self._decision(value)
        return Size(_numbers(value), lambda: self._weights(decision))

    def _lower(self, value: Any, called: bool = False) -> Any:
        """What `value` describes, its hyper values lowered; `called`: a late-bound node is called, not left waiting."""
        if isinstance(value, Hyper):
            return self._lower_hyper(value)
        if not isinstance(value, Tree):
            return value
        if isinstance(value, Node) and (called or not value.late):
            own = {name: item for name, item in value.args.items() if isinstance(item, Hyper)}
            if own and value.target in SIZES and own.keys() <= {*SIZES[value.target], "kernel_size"}:
                return self._lower_layer(value)
            if value.target is Repeat and "times" in own:
                decision, make = self._decision(own["times"]), value.args["make"]
                if not (isinstance(make, Node) and any(isinstance(item, Hyper) for item in make.args.values())):
                    make = self._lower(make)  # once, as it is built once: modules among its arguments are shared
                layers = [
                    self._lower(make, called=True) if isinstance(make, Node) else make()
                    for _ in range(max(_numbers(own["times"])))
                ]
                return ElasticRepeat(layers, _numbers(own["times"]), lambda: self._weights(decision))
            numbers = [item for item in own.values() if not _holds_modules(item)]
            if numbers and value.target.__module__.startswith("torch.nn"):
                return self._lower_number(value, numbers)
        made = build(copy_value(value, {id(part): self._lower(part) for part in _parts(value)}))
        return made() if called and value.late else made

    def _lower_number(self, node: Node, numbers: list[Hyper]) -> nn.Module:
        if len(numbers) > 1:
            raise ValueError(f"{node.path}: at most one number of {node.target.__name__} can be decided, got {numbers}")
        decision = self._decision(numbers[0])
        variants = []
        for option in _numbers(numbers[0]):
            others = {id(part): self._lower(part) for part in _parts(node) if part is not numbers[0]}
            made = build(copy_value(node, {**others, id(numbers[0]): option}))
            variants.append(made() if node.late else made)
        return Switch(variants, lambda: self._weights(decision))

    def _lower_hyper(self, hyper: Hyper) -> Any:
        options, decision = _options(hyper), self._decision(hyper)
        if _holds_modules(hyper):
            return Switch([self._lower(option) for option in options], lambda: self._weights(decision))
        return Scalar(_numbers(hyper), lambda: self._weights(decision))

    def _lower_layer(self, node: Node) -> nn.Module:
        names = SIZES[node.target]
        inputs, outputs = (self._size(node.args[name]) for name in names)
        sizes = dict(zip(names, (inputs.largest, outputs.largest)))
        kernel = None
        if isinstance(node.args.get("kernel_size"), Hyper):
            kernel = self._size(node.args["kernel_size"])
            if node.args.get("padding") != "same" or any(size % 2 == 0 for size in kernel.options):
                raise ValueError(f"{node.path}: a kernel size that is decided needs odd sizes and padding='same'")
            sizes["kernel_size"] = kernel.largest
        if node.args.get("groups", 1) not in (1, MISSING):
            raise ValueError(f"{node.path}: sizes that are decided need groups=1, got {node.args['groups']}")
        swap = {id(node.args[name]): size for name, size in sizes.items() if isinstance(node.args[name], Hyper)}
        layer = build(copy_value(node, swap))
        return Elastic(layer() if node.late else layer, inputs, outputs, kernel)


def extract(supernet: Supernet, dna: DNA) -> nn.Module:
    """The child of `dna` as an ordinary module of its own, with a copy of its shared weights."""
    child = supernet.template.decode(dna).build()
    before = supernet._chosen
    supernet.choose(dna)
    try:
        _copy(supernet.module, child)
    finally:
        supernet._chosen = before
    return child.train(supernet.training)


@torch.no_grad()
def _copy(source: nn.Module, child: nn.Module) -> None:
    if isinstance(source, Switch):
        ((index, _),) = source.weights()
        _copy(source.candidates[index], child)
    elif isinstance(source, Elastic):
        source.copy_to(child)
    elif isinstance(source, ElasticRepeat):
        for ours, theirs in zip(source.layers, child):  # type: ignore[call-overload]
            _copy(ours, theirs)
    else:
        own = {**dict(source.named_parameters(recurse=False)), **dict(source.named_buffers(recurse=False))}
        theirs = {**dict(child.named_parameters(recurse=False)), **dict(child.named_buffers(recurse=False))}
        for name, value in own.items():
            theirs[name].copy_(value)
        for name, module in source.named_children():
            _copy(module, child.get_submodule(name))


def _parts(value: Tree) -> Iterator[Tree]:
    """The outermost nodes and hyper values below `value`."""
    for _, item in value._items():
        if isinstance(item, Node):
            yield item
        elif isinstance(item, Tree):
            yield from _parts(item)


def _options(hyper: Hyper) -> list[Any]:
    if isinstance(hyper, IntValue):
        return list(range(hyper.args["lo"], hyper.args["hi"] + 1))
    if not isinstance(hyper, OneOf) or any(is_lazy(candidate) for candidate in hyper.candidates):
        raise ValueError(
            f"{hyper.path}: only oneof (of candidates that are not lazy) and intv can be lowered, got {hyper!r}"
        )
    return list(hyper.candidates)


def _numbers(hyper: Hyper) -> list[Any]:
    options = _options(hyper)
    if not all(isinstance(option, (int, float)) for option in options):
        raise ValueError(f"{hyper.path}: expected numbers or modules as candidates, got {options}")
    return options


def _holds_modules(hyper: Hyper) -> bool:
    return any(isinstance(option, (Node, nn.Module)) for option in _options(hyper))

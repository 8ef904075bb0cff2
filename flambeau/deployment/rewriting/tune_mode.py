"""Tune mode: convolution and normalisation of fixed statistics run as one convolution, in the model as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flambeau.deployment.rewriting.conv_bn_pairs import find_conv_bn, has_hooks
from flambeau.deployment.rewriting.inductor import enable_inductor_pass
from flambeau.nn.conv_bn import Precision, conv_bn_tune


@dataclass(frozen=True)
class TuneReport:
    """What was found in a model.

    Attributes:
        pairs: names (convolution, normalisation) of the merged pairs.
        skipped: (name, reason) of every other batch normalisation.
    """

    pairs: list[tuple[str, str]]
    skipped: list[tuple[str, str]]

    @property
    def n_pairs(self) -> int:
        return len(self.pairs)


class TuneMode:
    """Turn a model's convolutions followed by a batch normalisation into single convolutions while it is fine-tuned.

    ``tune_mode(model)`` changes no parameter, no name and no module's class: the forward functions of the two modules
    are replaced in place. The numbers are those of evaluation mode up to rounding, with about half of the saved
    activations (You et al. 2023, arXiv 2305.11624).

    At every call a pair is merged only if its normalisation is in evaluation mode with running statistics and no hook
    is registered that would see the tensor between the two; otherwise both modules run as usual. ``model.train()`` and
    ``model.eval()`` therefore keep their meaning; :func:`flambeau.nn.freeze_statistics` keeps the statistics fixed in
    training. Calling it again looks for the pairs again: do so after replacing modules. Compile, shard or wrap the
    model afterwards. A merged convolution that is called alone gives the normalised output.
    """

    def __call__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        precision: Precision = "input",
        *,
        min_gain: int | None = None,
        backend: Literal["eager", "inductor"] = "eager",
    ) -> TuneReport:
        """Merge the pairs of `model`.

        Args:
            example_inputs: for a model that ``torch.fx`` cannot trace: a tensor, a tuple of arguments or a dict of
                keyword arguments; pairs are then found by watching a forward pass.
            include, exclude: patterns (``"layer4.*"``) of names of convolutions or normalisations.
            precision: in which the weights are scaled, as in :func:`flambeau.nn.conv_bn_tune`.
            min_gain: leave out pairs that save fewer bytes than this on the example inputs: feature map, less the copy
                of the weights. With 1x1 maps or small batches the copy can be the larger one.
            backend: ``"eager"``, or ``"inductor"`` to leave the model alone and have ``torch.compile`` do it: that
                switches on PyTorch's own pass, which is for the whole process and every pair.

        Raises:
            ValueError: no pair (with the reasons), example inputs missing, or features that do not match.
            TypeError: a compiled model.

        Warns:
            UserWarning: a normalisation is in training mode, so that nothing is merged there now.
        """
        if precision not in ("input", "fp32"):
            raise ValueError(f"precision must be 'input' or 'fp32', got {precision!r}")
        if backend not in ("eager", "inductor"):
            raise ValueError(f"backend must be 'eager' or 'inductor', got {backend!r}")
        if backend == "inductor" and (include is not None or exclude or min_gain is not None or precision != "input"):
            raise ValueError(
                "backend='inductor' merges every pair; include, exclude, precision and min_gain need 'eager'"
            )
        with untuned(model):
            pairs, skipped = find_conv_bn(model, example_inputs, include=include, exclude=exclude, min_gain=min_gain)
        eval_mode(model)
        if backend == "inductor":
            enable_inductor_pass()
        else:
            for pair in pairs:
                pair.conv.forward = partial(_conv_forward, pair.conv, pair.bn, precision)
                pair.bn.forward = partial(_bn_forward, pair.conv, pair.bn)
        training = [pair.bn_name for pair in pairs if pair.bn.training]
        if training:
            warnings.warn(
                f"{len(training)} of {len(pairs)} normalisations are in training mode and not merged until they are in "
                f"evaluation mode: {', '.join(training[:3])}{', ...' if len(training) > 3 else ''}",
                stacklevel=2,
            )
        return TuneReport([(pair.conv_name, pair.bn_name) for pair in pairs], skipped)

    @contextmanager
    def enabled(self, model: nn.Module, example_inputs: Any = None, **options: Any) -> Iterator[TuneReport]:
        """Tune mode within a ``with`` block; afterwards the model is as before."""
        with untuned(model):
            try:
                yield self(model, example_inputs, **options)
            finally:
                eval_mode(model)


tune_mode = TuneMode()


def eval_mode(model: nn.Module) -> None:
    """Take tune mode out of `model`: its pairs run as two modules again. Training flags are left as they are."""
    for module in _replaced(model):
        del module.forward


@contextmanager
def untuned(model: nn.Module) -> Iterator[None]:
    """The model without tune mode within a ``with`` block, and with it again afterwards where it was."""
    before = _replaced(model)
    eval_mode(model)
    try:
        yield
    finally:
        for module, forward in before.items():
            module.forward = forward


def tuned(conv: nn.Module, bn: nn.Module) -> bool:
    """Whether tune mode merges the two."""
    forward = vars(bn).get("forward")
    return isinstance(forward, partial) and forward.func is _bn_forward and forward.args == (conv, bn)


def _conv_forward(conv: nn.Module, bn: _BatchNorm, precision: Precision, input: Tensor, *args: Any, **kwargs: Any):
    if _merged(conv, bn, input):
        return conv_bn_tune(input, conv, bn, *args, **kwargs, precision=precision)
    return type(conv).forward(conv, input, *args, **kwargs)


def _bn_forward(conv: nn.Module, bn: _BatchNorm, input: Tensor) -> Tensor:
    return input if _merged(conv, bn, input) else type(bn).forward(bn, input)


def _merged(conv: nn.Module, bn: _BatchNorm, x: Tensor) -> bool:
    """Asked by both modules of a pair; the answers agree because the convolution keeps the number of axes.

    With one axis less (no batch) or more (a linear layer over a sequence) the channels are on another axis.
    """
    axes = 2 + len(getattr(conv, "kernel_size", ()))
    fixed = not bn.training and bn.track_running_stats and bn.running_mean is not None
    return fixed and x.ndim == axes and not has_hooks(conv, bn)


def _replaced(model: nn.Module) -> dict[nn.Module, partial]:
    forwards = {module: vars(module).get("forward") for module in model.modules()}
    return {
        module: forward
        for module, forward in forwards.items()
        if isinstance(forward, partial) and forward.func in (_conv_forward, _bn_forward)
    }

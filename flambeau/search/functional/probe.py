"""Probes: how a candidate is run, briefly and on fixed data, to find out what it computes.

`Probe` is for what learns from examples, `FunctionProbe` for functions, `OptimizerProbe` for update rules; programs of
a register machine have `flambeau.search.register_programs.ProgramProbe`. See `flambeau.search.functional.key`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flambeau.data.seeding import derive_generator, derive_seed
from flambeau.search.functional.key import ProbeError
from flambeau.symbolic import Node

InitKey = Callable[[nn.Module, str], Hashable]


class Probe:
    """Trains a candidate for a few steps on a few examples: a factory of an `nn.Module`, or a scikit-learn estimator.

    The numbers are the loss of each training step and, afterwards, of each validation example; of an estimator its
    predictions of the validation examples (probabilities where it has them).

    What the hash depends on besides the function is fixed: double precision, one thread, deterministic kernels, plain
    SGD on the examples in their order, batch normalisation frozen, the masks of dropout layers a function of shape,
    rate and step, everything else that is random seeded. Initial values are keyed by `init` and the shape, so that
    neither the order of construction nor that of branches matters. Values that do not depend on the random seed (a
    scale of 0.1, say) are the candidate's own and stay; random ones are replaced, so candidates that differ only in how
    they draw their random initial values have equal keys.

    Args:
        train: examples and targets, cut into `steps` consecutive batches. Integer targets are classes
            (cross-entropy), others are regressed (squared error); `loss` overrides that.
        val: examples and targets of the validation.
        steps: training steps; 0 hashes the function at its initial values.
        lr: learning rate.
        init: names the role of a parameter, see `by_layer` and `by_order`.
        loss: from outputs and targets to the losses of the examples.
        allow_nondeterministic: accept modules that are not on the CPU, whose sums may come in any order.

    Raises:
        ValueError: fewer than one example, `steps` below 0 or above the examples, and, when a candidate is hashed, a
            module elsewhere than on the CPU or a parameter without a role.
    """

    def __init__(
        self,
        train: tuple[Any, Any],
        val: tuple[Any, Any],
        steps: int = 4,
        lr: float = 0.05,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        *,
        init: InitKey | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        allow_nondeterministic: bool = False,
    ) -> None:
        self.train, self.val = examples("train", train, dtype), examples("val", val, dtype)
        if not 0 <= steps <= len(self.train[0]):
            raise ValueError(f"steps: expected 0..{len(self.train[0])} (the training examples), got {steps}")
        self.steps, self.lr, self.dtype, self.seed = steps, lr, dtype, seed
        self.init, self.loss, self.allow_nondeterministic = init or by_layer, loss or losses, allow_nondeterministic

    def numbers(self, candidate: Any) -> list[float]:
        """The losses, or predictions, of a candidate; its exceptions are not caught."""
        if isinstance(candidate, nn.Module):
            raise ProbeError("candidate: expected a function that makes the module (its initial values are replaced)")
        factory = candidate.build if isinstance(candidate, Node) else candidate
        if is_estimator(factory):
            return self.predictions(factory)
        if not callable(factory):
            raise ProbeError(f"candidate: expected a factory or an estimator, got {type(candidate).__name__}")
        with deterministic(self.seed, self.dtype):
            made = factory()
            if is_estimator(made):
                return self.predictions(made)
            if not isinstance(made, nn.Module):
                raise ProbeError(f"candidate: expected a factory of an nn.Module, it made a {type(made).__name__}")
            torch.default_generator.manual_seed(derive_seed(self.seed, "other"))
            initialize(made, factory(), self.seed, self.init)
            return self.losses(made.to(self.dtype))

    def losses(self, module: nn.Module) -> list[float]:
        places = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        place = places.pop() if places else torch.device("cpu")
        if place.type != "cpu" and not self.allow_nondeterministic:
            hint = "hash on the CPU, or accept other keys for equal candidates by allow_nondeterministic=True"
            raise ProbeError(f"candidate: its module is on {place}, whose sums may come in any order; {hint}")
        (inputs, targets), found = (tensor.to(place) for tensor in self.train), []
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.train()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        for step in range(self.steps):
            torch.default_generator.manual_seed(derive_seed(self.seed, "step", step))
            hooks = [part.register_forward_pre_hook(self.reseed(step)) for part in module.modules() if is_dropout(part)]
            batch = slice(step * len(inputs) // self.steps, (step + 1) * len(inputs) // self.steps)
            loss = self.loss(module(inputs[batch]), targets[batch]).mean()
            found.append(loss.detach())
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients):
                        if gradient is not None:
                            parameter -= self.lr * gradient
            for hook in hooks:
                hook.remove()
        module.eval()
        with torch.no_grad():
            inputs, targets = (tensor.to(place) for tensor in self.val)
            each = self.loss(module(inputs), targets)
        return torch.cat([torch.stack(found) if found else each[:0], each.reshape(-1)]).tolist()

    def reseed(self, step: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Before a dropout layer: a seed that its neighbours, and so the order of the branches, have no part in."""

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            what = (type(layer).__name__, repr(float(layer.p)), str(tuple(inputs[0].shape)))
            torch.default_generator.manual_seed(derive_seed(self.seed, "dropout", step, *what))

        return hook

    def predictions(self, estimator: Any) -> list[float]:
        estimator = copy.deepcopy(estimator)
        if hasattr(estimator, "get_params"):
            seeded = [name for name in estimator.get_params() if name.split("__")[-1] == "random_state"]
            estimator.set_params(**dict.fromkeys(seeded, self.seed))
        (inputs, targets), (unseen, _) = ([tensor.numpy() for tensor in pair] for pair in (self.train, self.val))
        state = np.random.get_state()
        np.random.seed(self.seed)
        try:
            estimator.fit(inputs, targets)
            predict = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
            return np.asarray(predict(unseen), np.float64).reshape(-1).tolist()
        finally:
            np.random.set_state(state)


class FunctionProbe:
    """Calls a candidate on fixed inputs: a loss, an activation, or any function that returns numbers.

    The numbers are those it returns (a number, an array or tensor, or several in a tuple or list) and, with
    `gradients`, the derivative of the outputs, weighted by fixed random numbers, with respect to each floating-point
    tensor among the inputs. Tensors are handed over in double precision, everything else as it is.

    Args:
        inputs: the arguments of the call; see `random_inputs`. () for a candidate that brings everything itself, such
            as an experiment that returns its errors.
        gradients: whether a search will differentiate the candidates. Two functions with equal values everywhere, of
            which one stops the gradient, are told apart only then.
    """

    def __init__(self, inputs: Sequence[Any], gradients: bool = False, seed: int = 0) -> None:
        self.inputs, self.gradients, self.seed = tuple(inputs), gradients, seed

    def numbers(self, candidate: Any) -> list[float]:
        """Outputs, then gradients."""
        function = candidate.build() if isinstance(candidate, Node) else candidate
        if not callable(function):
            raise ProbeError(f"candidate: expected a function, got {type(candidate).__name__}")
        arguments = [fresh(value, self.gradients) for value in self.inputs]
        wanted = [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]
        with deterministic(self.seed, torch.float64), torch.enable_grad():
            outputs = list(flat(function(*arguments)))
            found = [value for output in outputs for value in as_floats(output)]
            differentiable = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
            if self.gradients and wanted:
                weights = [keyed_normal(o.shape, self.seed, "weights") for o in differentiable]
                total = sum((output * weight).sum() for output, weight in zip(differentiable, weights))
                gradients: Sequence[Tensor | None] = [None] * len(wanted)
                if differentiable:
                    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
                for value, gradient in zip(wanted, gradients):
                    found += as_floats(torch.zeros_like(value) if gradient is None else gradient)
        return found


class OptimizerProbe:
    """Lets an update rule minimise a fixed, ill-conditioned quadratic function; the numbers are where it goes.

    A candidate is a factory of an optimiser, from a list of parameters: `partial(torch.optim.SGD, lr=0.1)`, or a class
    of one's own with a method `step`.

    Args:
        steps: updates.
        size: parameters, in a matrix and a vector.
    """

    def __init__(self, steps: int = 5, size: int = 4, seed: int = 0) -> None:
        if steps < 1 or size < 1:
            raise ValueError(f"steps, size: expected at least 1 each, got {steps} and {size}")
        self.steps, self.size, self.seed = steps, size, seed

    def numbers(self, candidate: Any) -> list[float]:
        """The parameters after every step."""
        factory = candidate.build() if isinstance(candidate, Node) else candidate
        with deterministic(self.seed, torch.float64), torch.enable_grad():
            parameters = [
                nn.Parameter(keyed_normal(shape, self.seed, "start")) for shape in [(self.size,) * 2, (self.size,)]
            ]
            curvature = [torch.logspace(-2, 1, p.numel()).view_as(p) for p in parameters]
            optimizer, path = factory(parameters), []
            for _ in range(self.steps):
                for parameter in parameters:
                    parameter.grad = None
                sum((c * p.square()).sum() for c, p in zip(curvature, parameters)).backward()
                optimizer.step()
                path += [value for parameter in parameters for value in parameter.detach().reshape(-1).tolist()]
        return path


class Order(NamedTuple):
    """A role that is only a position."""

    position: int


def by_layer(module: nn.Module, name: str) -> Hashable:
    """The role of a parameter from its layer: the layer's class and the parameter's name in it.

    Known for the layers of torch.nn, and for classes with a method `init_key(name)`. None, for any other: the names of
    parameters in a class of one's own, and in ParameterList, may be numbers that only say in what order they were made.
    """
    if hasattr(module, "init_key"):
        return module.init_key(name)
    own = type(module).__module__.startswith("torch.nn.")
    return (type(module).__name__, name) if own and "ParameterList" not in type(module).__name__ else None


def by_order(module: nn.Module, name: str) -> Hashable:
    """No role: parameters get their initial values by the order of their creation, and so candidates whose branches
    were made in another order get other keys, although they compute the same."""
    return Order(0)


def initialize(module: nn.Module, other: nn.Module, seed: int, init: InitKey) -> None:
    """Replace the random values of `module` (those that differ in `other`, made with another seed) by keyed ones."""
    theirs = dict(other.named_parameters()) | dict(other.named_buffers())
    position = 0
    for prefix, owner in module.named_modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            full = f"{prefix}.{name}" if prefix else name
            if tensor is None or not tensor.is_floating_point() or tensor.is_meta:
                continue
            if full in theirs and torch.equal(tensor, theirs[full]):
                continue
            role = init(owner, name)
            if role is None:
                raise ProbeError(
                    f"candidate: no init key for the parameter {full!r} of {type(owner).__name__}, whose class is not "
                    "one of torch.nn: give the class a method init_key(name) that names the role of each parameter, or "
                    "accept initial values by order of creation with Probe(init=by_order), by which candidates that "
                    "compute the same may get different keys"
                )
            if isinstance(role, Order):
                role, position = ("order", position), position + 1
            values = keyed_normal(tensor.shape, seed, repr(role))
            if tensor.ndim > 1:
                values *= (2.0 / math.prod(tensor.shape[1:])) ** 0.5  # keeps the scale of activations through ReLUs
            else:
                values = 0.1 * values + (name == "weight")
            with torch.no_grad():
                tensor.copy_(values)


def keyed_normal(shape: Sequence[int], seed: int, key: str) -> Tensor:
    """Normal numbers that depend on the seed, the key and the shape only, in double precision."""
    generator = derive_generator(seed, key, str(tuple(shape)))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def random_inputs(*shapes: Sequence[int], seed: int = 0) -> tuple[Tensor, ...]:
    """Fixed normal inputs of these shapes, for `FunctionProbe`; no two alike."""
    return tuple(keyed_normal(shape, seed, f"input {i}") for i, shape in enumerate(shapes))


@contextmanager
def deterministic(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """One thread, deterministic kernels, `dtype` as default and a seeded generator; afterwards all as it was."""
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    strictness = torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without importing the compiler
            torch.set_default_dtype(dtype)
            torch.default_generator.manual_seed(derive_seed(seed, "one"))
            yield
        finally:
            torch.set_default_dtype(default)
            torch.set_deterministic_debug_mode(strictness)
            torch.set_num_threads(threads)


def examples(name: str, pair: tuple[Any, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Examples and targets as tensors."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair of examples and targets, got {type(pair).__name__}")
    inputs, targets = (torch.as_tensor(np.asarray(part) if not isinstance(part, Tensor) else part) for part in pair)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or len(inputs) < 1:
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name}: expected at least 1 example, and as many targets, got shapes {shapes}")
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in (inputs, targets))  # type: ignore[return-value]


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Loss of each example."""
    if targets.is_floating_point():
        return (outputs.reshape(targets.shape) - targets).square().flatten(1 if targets.ndim > 1 else 0)
    return nn.functional.cross_entropy(outputs, targets.long(), reduction="none")


def is_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd)


def is_estimator(value: Any) -> bool:
    return hasattr(value, "fit") and hasattr(value, "predict") and not isinstance(value, type)


def fresh(value: Any, gradients: bool) -> Any:
    """A copy of an argument that the candidate may write to."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if not value.is_floating_point():
        return value.clone()
    return value.detach().to(torch.float64, copy=True).requires_grad_(gradients)


def flat(value: Any) -> Iterator[Any]:
    """The outputs of a function, one after the other."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def as_floats(value: Any) -> list[float]:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ProbeError(f"candidate: expected it to return numbers, got {array.dtype} ({type(value).__name__})")
    return array.astype(np.float64).reshape(-1).tolist()

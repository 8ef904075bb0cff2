"""A classifier whose only evidence is the distance from the encoded input to prototypes that can be decoded.

Source: Li, Liu, Chen & Rudin, "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that
Explains Its Predictions" (AAAI 2018). Pushing prototypes onto training cases: Chen et al., ProtoPNet (NeurIPS 2019).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flambeau.files import write_bytes
from flambeau.nn.distances import nearest
from flambeau.nn.kmeans import kmeans
from flambeau.nn.prototype import PrototypeHead, PrototypeLayer


class PrototypeOutput(NamedTuple):
    """logits [batch, classes], squared distances [batch, prototypes], codes z [batch, latent], recon of the input."""

    logits: Tensor
    distances: Tensor
    z: Tensor
    recon: Tensor


class PrototypeNet(nn.Module):
    """Encoder f, prototypes P, bias-free head W and decoder g: logits = d(f(x), P) W, and g(P) shows the prototypes.

    Args:
        encoder: module from inputs to codes, [batch, latent_dim] or anything that flattens to it; outputs with a
            ``last_hidden_state`` (Hugging Face encoders) are averaged over the tokens.
        decoder: module from codes [batch, latent_dim] back to inputs. If its last module is ``nn.Sigmoid``, inputs must
            lie in [0, 1].
        num_classes: K.
        num_prototypes: m.
        latent_dim: length of a code; by default ``encoder.latent_dim``.
        w_mode, w_init, gamma: see :class:`~flambeau.nn.prototype.PrototypeHead`.
        freeze_encoder: keep a pretrained encoder as it is, in evaluation mode and without gradients; the decoder is
            trained on its codes.
        memory: how many codes of recent training inputs to keep for an R1 that looks beyond the batch
            (:class:`~flambeau.objectives.prototype.PrototypeLoss`); part of checkpoints, not of saved nets.

    Attributes:
        training_index: [prototypes] int64, the training case that stands for each prototype (``push``,
            ``cross_reference``), or −1. It is saved with the weights.

    Changing the number of prototypes (``prune``, ``merge``) makes new parameters: build the optimiser afterwards.
    """

    training_index: Tensor
    memory: Tensor
    memorised: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_classes: int,
        num_prototypes: int = 15,
        *,
        latent_dim: int | None = None,
        w_mode: str = "free",
        w_init: str = "uniform",
        gamma: float = 0.1,
        freeze_encoder: bool = False,
        memory: int = 0,
    ):
        super().__init__()
        if memory < 0:
            raise ValueError(f"memory: got {memory}, expected >= 0 codes")
        latent_dim = latent_dim if latent_dim is not None else getattr(encoder, "latent_dim", None)
        if not isinstance(latent_dim, int):
            raise ValueError(f"latent_dim: {type(encoder).__name__} has no latent_dim attribute, expected the argument")
        self.encoder, self.decoder = encoder, decoder
        self.prototype_layer = PrototypeLayer(num_prototypes, latent_dim)
        self.head = PrototypeHead(num_prototypes, num_classes, mode=w_mode, init=w_init, gamma=gamma)
        self.register_buffer("training_index", torch.full((num_prototypes,), -1))
        self.register_buffer("memory", torch.zeros(memory, latent_dim))
        self.register_buffer("memorised", torch.zeros((), dtype=torch.int64))
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            encoder.requires_grad_(False).eval()

    @property
    def prototypes(self) -> nn.Parameter:
        """[prototypes, latent]."""
        return self.prototype_layer.prototypes

    @property
    def num_classes(self) -> int:
        return self.head.weight.shape[1]

    def train(self, mode: bool = True) -> "PrototypeNet":
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def encode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch latent"]:
        """f(x), flattened.

        Raises:
            TypeError: x is not floating point.
            ValueError: x holds NaN or infinity, or leaves [0, 1] while the decoder ends in a sigmoid; codes of another
                length than the prototypes.
        """
        if not torch.compiler.is_compiling():
            self._check_values(x)
        if self.freeze_encoder:
            with torch.no_grad():
                z = self.encoder(x)
        else:
            z = self.encoder(x)
        z = z.last_hidden_state.mean(1) if hasattr(z, "last_hidden_state") else z
        return z.flatten(1)

    def classify(
        self, x: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch prototypes"]]:
        """(logits, distances), without decoding."""
        distances = self.prototype_layer(self.encode(x))
        return self.head(distances), distances

    def forward(self, x: Float[Tensor, "batch *shape"]) -> PrototypeOutput:
        z = self.encode(x)
        distances = self.prototype_layer(z)
        recon = self.decoder(z)
        if recon.shape != x.shape:
            raise ValueError(f"decoder: got an output of shape {tuple(recon.shape)}, expected {tuple(x.shape)}")
        return PrototypeOutput(self.head(distances), distances, z, recon)

    @torch.no_grad()
    def encode_all(self, x: Float[Tensor, "n *shape"], batch_size: int = 512) -> Float[Tensor, "n latent"]:
        """Codes of a whole set, in evaluation mode and in batches, on the device of the prototypes."""
        with _evaluating(self):
            return torch.cat([self.encode(part.to(self.prototypes.device)) for part in x.split(batch_size)])

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "n *shape"], batch_size: int = 512) -> Int64[Tensor, " n"]:
        """The class of the largest logit for a whole set."""
        return self.head(self.prototype_layer(self.encode_all(x, batch_size))).argmax(1)

    @torch.no_grad()
    def decode_prototypes(self) -> Float[Tensor, "prototypes *shape"]:
        """g(P): what each prototype looks like."""
        with _evaluating(self):
            return self.decoder(self.prototypes)

    @torch.no_grad()
    def start_prototypes(
        self,
        codes: Float[Tensor, "n latent"],
        labels: Int64[Tensor, " n"],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put the prototypes on k-means centres (k-means++ seeds) of encoded cases, after a warm-up of the whole loss.

        A free W then starts at −1 for the class of the case nearest to a prototype and +gamma for the others. With
        fixed classes each class's prototypes are the centres of its own cases.

        Raises:
            ValueError: fewer codes than prototypes, or than a fixed class's prototypes in that class.
        """
        if self.head.mode == "free":
            self.prototypes.copy_(kmeans(codes, len(self.prototypes), generator=generator))
            self.head.assign(labels[self.cross_reference(codes)])
            return
        for label in range(self.num_classes):
            own = self.head.favoured_class == label
            self.prototypes[own] = kmeans(codes[labels == label], int(own.sum()), generator=generator)
        self.cross_reference(codes)

    @torch.no_grad()
    def memorise(self, z: Float[Tensor, "batch latent"]) -> None:
        """Write codes over the oldest of the ``memory``."""
        z = z.detach()[-len(self.memory) :]
        places = (self.memorised + torch.arange(len(z), device=z.device)) % len(self.memory)
        self.memory = self.memory.index_copy(0, places, z)  # a copy: the step's graph may hold the old one
        self.memorised = self.memorised + len(z)

    def remembered(self, count: int) -> Float[Tensor, "held latent"]:
        """The last ``count`` codes memorised, in no order; fewer at the beginning."""
        held = min(int(self.memorised), len(self.memory))
        newest = (self.memorised - 1 - torch.arange(min(count, held), device=self.memory.device)) % max(held, 1)
        return self.memory[newest]

    @torch.no_grad()
    def cross_reference(self, codes: Float[Tensor, "n latent"]) -> Int64[Tensor, " prototypes"]:
        """Note in ``training_index`` which of the encoded training cases is nearest to each prototype."""
        self.training_index.copy_(nearest(self.prototypes, codes)[1][:, 0])
        return self.training_index

    @torch.no_grad()
    def push(self, codes: Float[Tensor, "n latent"]) -> Int64[Tensor, " prototypes"]:
        """Move each prototype onto its nearest encoded training case; returns the cases' indices."""
        index = self.cross_reference(codes)
        self.prototypes.copy_(codes[index])
        return index

    @torch.no_grad()
    def prune(self, j: int) -> None:
        """Remove prototype j. If an exact duplicate stays, it takes over the weights, so that logits do not change."""
        self._check_prototype(j)
        same = (self.prototypes == self.prototypes[j]).all(1).nonzero()[:, 0].tolist()
        twin = next((i for i in same if i != j), None)
        if twin is not None:
            self.head.weight[twin] += self.head.weight[j]
        self._remove(j)

    @torch.no_grad()
    def merge(self, i: int, j: int) -> None:
        """Replace prototypes i and j by their mean at the place of i, with the sum of their weights.

        For exact duplicates the logits do not change.
        """
        self._check_prototype(i)
        self._check_prototype(j)
        if i == j:
            raise ValueError(f"j: got {j}, expected another prototype than i")
        self.prototypes[i] = self.prototypes[i].lerp(self.prototypes[j], 0.5)
        self.head.weight[i] += self.head.weight[j]
        self._remove(j)

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, prototypes and their training cases to a safetensors file, atomically."""
        kept = {name: value for name, value in self.state_dict().items() if name not in ("memory", "memorised")}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}
        described = {"format": "flambeau.PrototypeNet", "w_mode": self.head.mode}
        write_bytes(Path(path), serialize(tensors, metadata=described))

    @classmethod
    def load(
        cls, path: str | os.PathLike, encoder: nn.Module, decoder: nn.Module, *, freeze_encoder: bool = False
    ) -> "PrototypeNet":
        """The saved net around an encoder and a decoder of the saved architecture.

        Raises:
            ValueError: a file of another kind, or weights that do not fit the modules.
        """
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            if described.get("format") != "flambeau.PrototypeNet":
                raise ValueError(f"path: got {os.fspath(path)}, expected a file written by PrototypeNet.save")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        prototypes, weight = tensors["prototype_layer.prototypes"], tensors["head.weight"]
        net = cls(
            encoder,
            decoder,
            weight.shape[1],
            len(prototypes),
            latent_dim=prototypes.shape[1],
            w_mode=described["w_mode"],
            freeze_encoder=freeze_encoder,
        )
        try:
            net.load_state_dict(tensors | {"memory": net.memory, "memorised": net.memorised})
        except RuntimeError as error:
            raise ValueError(f"path: {os.fspath(path)} does not fit the encoder or decoder: {error}") from None
        return net

    def _remove(self, j: int) -> None:
        keep = torch.arange(len(self.prototypes), device=self.prototypes.device) != j
        self.prototype_layer.prototypes = nn.Parameter(self.prototypes[keep].detach().clone())
        weight = self.head.weight[keep].detach().clone()
        self.head.weight = nn.Parameter(weight) if self.head.mode == "free" else weight
        self.training_index = self.training_index[keep]

    def _check_prototype(self, j: int) -> None:
        if not 0 <= j < len(self.prototypes):
            raise ValueError(f"prototype: got {j}, expected 0 to {len(self.prototypes) - 1}")
        if len(self.prototypes) == 1:
            raise ValueError("the last prototype cannot be removed")

    def _check_values(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x: got {x.dtype}, expected floating point")
        if not x.numel():
            return
        low, high = (float(bound) for bound in x.detach().aminmax())
        if not torch.isfinite(torch.tensor([low, high])).all():
            raise ValueError(f"x: got NaN or infinity (range {low} to {high}), expected finite values")
        *_, last = self.decoder.modules()
        if isinstance(last, nn.Sigmoid) and (low < 0 or high > 1):
            raise ValueError(f"x: got values from {low:g} to {high:g}, expected [0, 1] as the sigmoid decoder gives")


@torch.no_grad()
def latent_spread(codes: Float[Tensor, "n latent"]) -> float:
    """Mean squared distance between two different codes: twice their total (unbiased) variance."""
    return float(2 * codes.double().var(0).sum())


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)

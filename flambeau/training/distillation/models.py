"""The networks of a config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.data.seeding import derive_seed
from flambeau.training.distillation.names import MODELS, find
from flambeau.training.distillation.tags import ConfigError, resolve
from flambeau.training.distillation.weights import load_weights
from flambeau.training.state import seeded


def build_models(
    config: Mapping[str, Any], *, seed: int = 0, allow: Sequence[str] = ("flambeau", "torch")
) -> tuple[nn.Module | None, nn.Module]:
    """Teacher (or None) and student of the ``models`` section, with the weights of their ``src_ckpt``.

    A ``key`` is a name of ``flambeau.models.vision`` (or ``torchvision.models``, if allowed), a dotted name below an
    allowed root ("timm.create_model", "transformers.AutoModel.from_pretrained"), or, with ``repo_or_dir``, an entry of
    a PyTorch Hub repository, whose code is run: only with "torch.hub" among `allow`.

    Raises:
        ConfigError: an unknown name, arguments that the model refuses, or weights that do not fit.
    """
    models = resolve(config["models"])
    teacher = models.get("teacher_model")
    student = models.get("student_model") or models["model"]
    with seeded(derive_seed(seed, "models"), torch.device("cpu")):
        built = [None if section is None else _build_model(section, allow) for section in (teacher, student)]
    return built[0], built[1]


def _build_model(section: Mapping[str, Any], allow: Sequence[str]) -> nn.Module:
    key, kwargs = section["key"], section.get("kwargs") or {}
    if isinstance(key, nn.Module):
        model = key
    elif section.get("repo_or_dir"):
        if "torch.hub" not in allow:
            raise ConfigError(f"repo_or_dir runs code of {section['repo_or_dir']}; allow=(..., 'torch.hub') permits it")
        source = "local" if Path(section["repo_or_dir"]).is_dir() else "github"
        model = torch.hub.load(section["repo_or_dir"], key, source=source, trust_repo=True, **kwargs)
    else:
        factory = find(key, MODELS, allow, "models: key")
        try:
            model = factory(**kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"models: {key}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"models: {key} gives a {type(model).__name__}, not a module")
    if section.get("src_ckpt"):
        load_weights(model, section["src_ckpt"])
    return model


def pick_device() -> torch.device:
    """This process's GPU if there is one, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

"""Distillation from a config: hooks, pruned networks, losses bound to module paths, stages, and a teacher cache."""

from flambeau.training.distillation.box import DistillBox, TrainingBox, get_box
from flambeau.training.distillation.config import load_config, parse_config
from flambeau.training.distillation.hooks import ForwardHookManager, hooks
from flambeau.training.distillation.models import build_models
from flambeau.training.distillation.path_loss import PathLoss, WeightedSumLoss
from flambeau.training.distillation.run import accuracy, distill, evaluate_models
from flambeau.training.distillation.schema import check_config
from flambeau.training.distillation.sequential import build_sequential, freeze
from flambeau.training.distillation.stage import Side, Stage, stage_loss
from flambeau.training.distillation.tags import ConfigError

__all__ = [
    "ConfigError",
    "DistillBox",
    "ForwardHookManager",
    "PathLoss",
    "Side",
    "Stage",
    "TrainingBox",
    "WeightedSumLoss",
    "accuracy",
    "build_models",
    "build_sequential",
    "check_config",
    "distill",
    "evaluate_models",
    "freeze",
    "get_box",
    "hooks",
    "load_config",
    "parse_config",
    "stage_loss",
]

"""One training loop for every paper: schedules, precision, averaging, checkpoints and exact resume."""

from flambeau.training.checkpoint import CheckpointError
from flambeau.training.ema_teacher import EMATeacher
from flambeau.training.fine_tune import fine_tune
from flambeau.training.interrupts import Interrupted
from flambeau.training.layer_decay import LayerDecay
from flambeau.training.loop import to_device
from flambeau.training.optimizers import LAMB, LARS
from flambeau.training.precision import Autocast, Precision
from flambeau.training.progress import ConsoleProgress
from flambeau.training.prototypes import fit_prototypes
from flambeau.training.schedules import OneCycle, StepHalving, WarmupCosine, WarmupLinear, constant
from flambeau.training.trainer import Fit, Trainer

__all__ = [
    "Autocast",
    "CheckpointError",
    "ConsoleProgress",
    "EMATeacher",
    "Fit",
    "Interrupted",
    "LAMB",
    "LARS",
    "LayerDecay",
    "OneCycle",
    "Precision",
    "StepHalving",
    "Trainer",
    "WarmupCosine",
    "WarmupLinear",
    "constant",
    "to_device",
    "fine_tune",
    "fit_prototypes",
]

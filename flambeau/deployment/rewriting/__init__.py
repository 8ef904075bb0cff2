"""A model's modules found, merged and replaced in place."""

from flambeau.deployment.rewriting.deploy_mode import FusedBatchNorm, deploy_mode
from flambeau.deployment.rewriting.explain import explain_convbn
from flambeau.deployment.rewriting.module_pairs import ModuleUses, module_pairs, trace_uses, watch_uses
from flambeau.deployment.rewriting.rescaling import rescale_channels
from flambeau.deployment.rewriting.tune_mode import TuneReport, eval_mode, tune_mode

__all__ = [
    "FusedBatchNorm",
    "ModuleUses",
    "TuneReport",
    "deploy_mode",
    "eval_mode",
    "explain_convbn",
    "module_pairs",
    "rescale_channels",
    "trace_uses",
    "tune_mode",
    "watch_uses",
]

"""Modules beside a student or teacher that are trained with it and read its recorded tensors.

An auxiliary is a module with ``secondary_forward(io_dict)``, called after the model's own forward pass with what hooks
recorded of it, path -> {"input", "output"}; it adds its own entries, which losses then find like the model's.
"""

from flambeau.training.distillation.auxiliary.adapters import ConvAdapter, Paraphraser, Translator, VIDRegressor
from flambeau.training.distillation.auxiliary.container import Auxiliary, EmptyModule
from flambeau.training.distillation.auxiliary.heads import CCKDHead, CRDHead, SRDProjector, SSHead, VarianceBranch
from flambeau.training.distillation.auxiliary.review import AttentionBasedFusion, KnowledgeReview

__all__ = [
    "AttentionBasedFusion",
    "Auxiliary",
    "CCKDHead",
    "CRDHead",
    "ConvAdapter",
    "EmptyModule",
    "KnowledgeReview",
    "Paraphraser",
    "SRDProjector",
    "SSHead",
    "Translator",
    "VIDRegressor",
    "VarianceBranch",
]

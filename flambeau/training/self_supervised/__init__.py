"""Pre-training without labels: each method maps views of a batch to its loss and keeps its `.backbone`."""

from flambeau.training.self_supervised.byol import BYOL
from flambeau.training.self_supervised.mae import MAE
from flambeau.training.self_supervised.moco import MoCoV2
from flambeau.training.self_supervised.pretrain import PooledFeatures, feature_dim, pooled_features, pretrain
from flambeau.training.self_supervised.simclr import SimCLR
from flambeau.training.self_supervised.sit import SiT, SiTClassifier
from flambeau.training.self_supervised.spark import SparK, spark_visualise
from flambeau.training.self_supervised.swav import SwAV

__all__ = [
    "BYOL",
    "MAE",
    "MoCoV2",
    "PooledFeatures",
    "SiT",
    "SiTClassifier",
    "SimCLR",
    "SparK",
    "SwAV",
    "feature_dim",
    "pooled_features",
    "pretrain",
    "spark_visualise",
]

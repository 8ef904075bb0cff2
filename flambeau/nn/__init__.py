"""Layers, built of ops."""

from flambeau.nn.auto_correlation import AutoCorrelation
from flambeau.nn.decomposition import SeasonalLayerNorm, SeriesDecomposition
from flambeau.nn.distances import nearest, squared_distances
from flambeau.nn.kmeans import kmeans, kmeans_plus_plus
from flambeau.nn.prototype import PrototypeHead, PrototypeLayer
from flambeau.nn.recurrent import FlashGRU, FlashLSTM, FlashRNN
from flambeau.nn.series_attention import FullAttention, ProbSparseAttention, ProjectedHeads
from flambeau.nn.series_embedding import SeriesEmbedding

__all__ = [
    "AutoCorrelation",
    "FlashGRU",
    "FlashLSTM",
    "FlashRNN",
    "FullAttention",
    "ProbSparseAttention",
    "ProjectedHeads",
    "PrototypeHead",
    "PrototypeLayer",
    "SeasonalLayerNorm",
    "SeriesDecomposition",
    "SeriesEmbedding",
    "kmeans",
    "kmeans_plus_plus",
    "nearest",
    "squared_distances",
]

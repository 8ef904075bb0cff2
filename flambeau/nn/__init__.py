"""Layers, built of ops."""

from flambeau.nn.attention import (
    DenseAttention,
    LocalAttention,
    LocalRoutingAttention,
    LSHAttention,
    RandomRoutingAttention,
    RoutingAttention,
    StridedAttention,
    collect_aux,
)
from flambeau.nn.conv_bn import conv_bn_tune
from flambeau.nn.distances import nearest, squared_distances
from flambeau.nn.feature_queue import FeatureQueue
from flambeau.nn.fields.embedding import FieldEmbedding
from flambeau.nn.fields.interacting import InteractingLayer
from flambeau.nn.frozen_statistics import freeze_statistics, unfreeze_statistics
from flambeau.nn.kmeans import kmeans, kmeans_plus_plus
from flambeau.nn.linformer import linformer_attention
from flambeau.nn.online_kmeans import OnlineKMeans
from flambeau.nn.prototype import PrototypeHead, PrototypeLayer
from flambeau.nn.recurrent import FlashGRU, FlashLSTM, FlashRNN
from flambeau.nn.ring import Loopback, SequenceLayout, ring_attention, split_positions
from flambeau.nn.series.attention import FullAttention, ProbSparseAttention, ProjectedHeads
from flambeau.nn.series.auto_correlation import AutoCorrelation
from flambeau.nn.series.decomposition import SeasonalLayerNorm, SeriesDecomposition
from flambeau.nn.series.embedding import SeriesEmbedding
from flambeau.nn.sparse import SparseContext, to_sparse
from flambeau.nn.unet_decoder import LightDecoder

__all__ = [
    "AutoCorrelation",
    "DenseAttention",
    "FeatureQueue",
    "FieldEmbedding",
    "FlashGRU",
    "FlashLSTM",
    "FlashRNN",
    "FullAttention",
    "InteractingLayer",
    "LSHAttention",
    "LocalAttention",
    "LocalRoutingAttention",
    "LightDecoder",
    "Loopback",
    "OnlineKMeans",
    "ProbSparseAttention",
    "ProjectedHeads",
    "PrototypeHead",
    "PrototypeLayer",
    "RandomRoutingAttention",
    "RoutingAttention",
    "SeasonalLayerNorm",
    "SequenceLayout",
    "SeriesDecomposition",
    "SeriesEmbedding",
    "SparseContext",
    "StridedAttention",
    "collect_aux",
    "conv_bn_tune",
    "freeze_statistics",
    "kmeans",
    "kmeans_plus_plus",
    "linformer_attention",
    "nearest",
    "ring_attention",
    "split_positions",
    "squared_distances",
    "to_sparse",
    "unfreeze_statistics",
]

"""Sampling from autoregressive models: orders, samplers, plain and speculative decoders."""

from flambeau.generation.processors import AllowedTokens, EndOfLine, PerSlot, Processor, RepetitionPenalty, Slots
from flambeau.generation.sampler import Sampler
from flambeau.generation.sequential import generate
from flambeau.generation.spatial_init import SpatialInit
from flambeau.generation.speculative_jacobi import SpeculativeJacobi, calibrate
from flambeau.generation.statistics import Generation, Statistics
from flambeau.nn.kv_cache import KVCache
from flambeau.nn.order import Order, custom, diagonal, random_order, raster, snake

__all__ = [
    "AllowedTokens",
    "EndOfLine",
    "Generation",
    "KVCache",
    "Order",
    "PerSlot",
    "Processor",
    "RepetitionPenalty",
    "Sampler",
    "Slots",
    "SpatialInit",
    "SpeculativeJacobi",
    "Statistics",
    "calibrate",
    "custom",
    "diagonal",
    "generate",
    "random_order",
    "raster",
    "snake",
]

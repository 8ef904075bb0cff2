"""Convolutional networks that see some cells of an image only, and compute nothing from the others."""

from flambeau.nn.sparse.context import ActiveCells, SparseContext
from flambeau.nn.sparse.convert import to_sparse
from flambeau.nn.sparse.taps import Tap, find_taps, record_taps

__all__ = ["ActiveCells", "SparseContext", "Tap", "find_taps", "record_taps", "to_sparse"]

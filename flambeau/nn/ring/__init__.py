"""Attention over a sequence that is spread over ranks."""

from flambeau.nn.ring.attention import ring_attention
from flambeau.nn.ring.layout import SequenceLayout, split_positions
from flambeau.nn.ring.route import Route
from flambeau.nn.ring.transport import Loopback
from flambeau.nn.ring.visibility import Visibility

__all__ = ["Loopback", "Route", "SequenceLayout", "Visibility", "ring_attention", "split_positions"]

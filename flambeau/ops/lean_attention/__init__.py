"""Exact attention for generation steps, its work divided equally over all workers wherever the keys are."""

from flambeau.ops.lean_attention.decode import lean_decode
from flambeau.ops.lean_attention.plan import LeanPlan, Segment
from flambeau.ops.lean_attention.reference import SoftmaxState, merge_states
from flambeau.ops.lean_attention.sdpa import lean_scaled_dot_product_attention

__all__ = [
    "LeanPlan",
    "Segment",
    "SoftmaxState",
    "lean_decode",
    "lean_scaled_dot_product_attention",
    "merge_states",
]

"""Attention layers with one interface.

Every layer is called ``layer(x, context=None, mask=None, cache=None) -> (y, aux_loss)``:

- x ``[batch, time, dim]``, y of the same shape, projections included;
- context ``[batch, keytime, dim]``: what a layer built with ``cross=True`` attends to;
- mask ``[batch, time]``: False where x is padding (``context_mask`` likewise), which is never attended to;
- cache: of ``layer.new_cache(batch, capacity)``; x then holds the next tokens only, and y equals what the same tokens
  get in one pass over the whole sequence;
- aux_loss: a scalar to add to the loss, 0 for most; ``collect_aux(model)`` sums those of the last forward.

A layer also has ``project(x, context) -> queries, keys, values`` and ``attend(queries, keys, values, mask)``, both
over ``[batch, heads, time, dim]``, of which its forward is made.

Whole networks that parallel plans and :class:`AttentionSpec` change from outside keep their own projections, and use an
:class:`AttentionCore` between them.
"""

from flambeau.nn.attention.auxiliary import collect_aux
from flambeau.nn.attention.core import AttentionCore, AttentionSpec
from flambeau.nn.attention.dense import DenseAttention
from flambeau.nn.attention.local import LocalAttention
from flambeau.nn.attention.local_routing import LocalRoutingAttention
from flambeau.nn.attention.lsh import LSHAttention
from flambeau.nn.attention.random_routing import RandomRoutingAttention
from flambeau.nn.attention.routing import RoutingAttention
from flambeau.nn.attention.strided import StridedAttention

__all__ = [
    "AttentionCore",
    "AttentionSpec",
    "DenseAttention",
    "LSHAttention",
    "LocalAttention",
    "LocalRoutingAttention",
    "RandomRoutingAttention",
    "RoutingAttention",
    "StridedAttention",
    "collect_aux",
]

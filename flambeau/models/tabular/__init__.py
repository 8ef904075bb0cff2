"""Networks that look at rows of a table."""

from flambeau.models.tabular.autoencoder import MLPDecoder, MLPEncoder

__all__ = ["MLPDecoder", "MLPEncoder"]

"""The other places a model runs."""

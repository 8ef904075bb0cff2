"""Layers for time series."""

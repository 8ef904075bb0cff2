"""Layers over the fields of a tabular record."""

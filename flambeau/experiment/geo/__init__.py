"""Measuring how maps are read and learned from."""

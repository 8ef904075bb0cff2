"""Candidates that share one network's weights."""

"""Measuring attention layers: what they cost, what they find again, what language models gain."""

"""One module a paper: it composes the parts of the rooms below and measures the paper's claims."""

from flambeau.papers.catalog import Paper, catalog, describe, find, load

__all__ = ["Paper", "catalog", "describe", "find", "load"]

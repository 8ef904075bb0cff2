"""flambeau: published systems as working parts, runnable experiments and measured claims."""

__version__ = "0.1.0"

"""Print the keys of the papers that run, one a line."""

from flambeau.papers.catalog import catalog

print("\n".join(key for key, paper in catalog().items() if paper.runs))

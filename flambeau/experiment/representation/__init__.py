"""How good self-supervised representations are: probes, few labels, learning curves, and what attention sees."""

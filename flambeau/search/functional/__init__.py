"""Telling programs apart by what they compute: probes, keys, and the cache that spares a second evaluation."""

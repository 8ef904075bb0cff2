"""Measuring training that is split over processes, by layers or by sequence."""

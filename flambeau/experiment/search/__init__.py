"""Measuring searches over programs and cells."""

"""Comparing and drawing forecasts."""

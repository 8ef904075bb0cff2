"""Measuring click predictors."""

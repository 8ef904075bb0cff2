"""Comparing ways of distillation, and timing what they save."""

"""Measuring the modes of normalisation while a pretrained network is fine-tuned."""

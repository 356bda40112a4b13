"""Measurements of the ops, of a training step and of the models; run as ``python -m benchmarks.NAME``."""

"""Evaluation metrics, baselines and the report. Only generation.py needs a model."""

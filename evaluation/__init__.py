"""Evaluation metrics, reference rows and the report."""

"""Evaluation of models: accuracy, depth profiles, predictions, and overlays."""

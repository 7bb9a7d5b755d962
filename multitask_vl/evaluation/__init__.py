"""Prediction of splits, and scores and submissions computed from prediction files."""

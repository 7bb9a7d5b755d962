"""Comparisons on the synthetic world: code, recorded runs and tables."""

"""Comparisons on the synthetic world: code and recorded runs."""

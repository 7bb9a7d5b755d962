"""Does training on the synthetic data work: runs, controls and tables."""

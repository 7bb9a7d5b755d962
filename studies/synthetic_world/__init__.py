"""Controls, curves and method comparison on the synthetic world."""

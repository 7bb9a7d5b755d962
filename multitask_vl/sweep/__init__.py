"""Grids of runs from one YAML file."""

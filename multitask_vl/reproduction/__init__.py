"""Published rows, their configurations and parameter counts."""

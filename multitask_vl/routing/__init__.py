"""Routing functions and how x_R reaches a bottleneck."""

"""Routing functions compared on the synthetic world."""

"""Synthetic world: rendered scenes with questions, statements and captions in the official file formats."""

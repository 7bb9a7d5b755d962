"""Analysis of trained models: weight changes, cross-attention, gates and routing similarity."""

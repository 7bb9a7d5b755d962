"""Checks of everything a run needs, before it starts."""

"""Annotation formats, JSON streaming and submission checks."""

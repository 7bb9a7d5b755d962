"""Saving, loading, sharing and exporting adapters."""

"""Inspecting, verifying, merging, importing and exporting feature stores."""

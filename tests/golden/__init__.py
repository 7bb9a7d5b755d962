"""Recorded numbers of the published code, and the runner that compares this project with them."""

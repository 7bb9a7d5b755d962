"""Atomic writes, file locks, EXIF orientation and hashing."""

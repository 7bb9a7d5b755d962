"""Input checks, run assembly, provenance and distributed setup."""

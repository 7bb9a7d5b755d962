"""Input checks, building a run, provenance and distributed set-up."""

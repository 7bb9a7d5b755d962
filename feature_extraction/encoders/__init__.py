"""Vision encoders, one file per library."""

"""The routing study: runs, tables and record."""

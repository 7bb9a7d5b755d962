"""The feature store: format, writer, readers and manifest."""

"""Chunked cross-entropy, CPU dropout, CPU precision and FSDP."""

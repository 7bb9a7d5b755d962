"""Language-model families, one file each."""

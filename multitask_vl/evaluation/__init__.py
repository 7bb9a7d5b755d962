"""How good is a model: predictions as files, and scores as functions of files."""

"""Pretraining of the bundled tiny CLIP and tiny BART."""

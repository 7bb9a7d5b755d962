"""Pretraining of the bundled tiny CLIP and BART."""

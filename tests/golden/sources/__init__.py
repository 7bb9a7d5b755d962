"""Tensor names of each method in the published sources: one file per method.

A file defines any of: ``found(fixture)``, the configuration of the method if the fixture has its tensors;
``names(name)``, candidates for our name of a tensor (or pairs of our name and the block of its rows); ``task(name)``,
the task that a tensor belongs to; ``unused(name)``, whether the source stores and trains a tensor without using it.
"""

"""How do the published sources name a method's tensors: a file a method, all of them asked in turn.

A file has any of: ``found(fixture)``, our configuration of the method if these tensors are its own; ``names(name)``,
candidates for our name of a tensor (or pairs: our name, and which block of its rows); ``task(name)``, the task that a
tensor belongs to; ``unused(name)``, whether the source holds and trains a tensor that it never uses.
"""

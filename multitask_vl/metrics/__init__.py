"""How good is an answer: pure scorers that know neither tasks nor models."""

"""Models: visual embedding, sequence-to-sequence model, building, loading and export."""

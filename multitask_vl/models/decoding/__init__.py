"""Generation, shared-KV beam search and answer ranking."""

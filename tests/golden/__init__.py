"""Do we compute what the published code computes: recorded numbers, and the runner that compares with them."""

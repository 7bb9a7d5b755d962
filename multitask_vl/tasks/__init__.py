"""Tasks: one file each for data, prompt, targets, loss, metric and submission."""

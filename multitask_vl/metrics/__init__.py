"""Pure scoring functions, independent of tasks and models."""

"""What happens inside a trained model: numbers for figures, computed with the model and left in a file for reports."""

"""What a model knows: accuracy, depth profiles, predictions, and where it looks."""

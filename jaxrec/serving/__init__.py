"""Lists from a trained model."""

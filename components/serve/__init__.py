"""The registered model at work."""

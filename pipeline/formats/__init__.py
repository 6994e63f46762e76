"""The documented files: part masks, features, checkpoints and results."""

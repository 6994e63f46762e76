"""Rendered, occluded people with true masks, from a seed."""

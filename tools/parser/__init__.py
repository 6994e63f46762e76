"""Trains and measures the built-in human parser."""

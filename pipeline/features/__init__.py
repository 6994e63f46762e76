"""Extraction: query and gallery images to a features file."""

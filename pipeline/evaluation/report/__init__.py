"""A report page for an evaluation: one HTML file that shows what was found and why."""

QUERIES = 200
"""Queries of a test set that a page holds, unless asked otherwise."""

"""A report page for an evaluation: one HTML file that shows what was found and why."""

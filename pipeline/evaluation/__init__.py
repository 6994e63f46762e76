"""A features file in, results, breakdowns and figures out."""

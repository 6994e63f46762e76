"""A features file in, results, breakdowns and pictures out."""

"""Features and visibility in, distances, rankings and metrics out; usable without the rest of the package."""

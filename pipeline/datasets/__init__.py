"""Data sets on disk -> records of (path, pid, camid, split)."""

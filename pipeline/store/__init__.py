"""Cached artifacts: found by fingerprint, built under a lock, published by one rename, verifiable."""

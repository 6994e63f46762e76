"""The store of what stages make: found by fingerprint, built under a lock, published by one rename, verifiable."""

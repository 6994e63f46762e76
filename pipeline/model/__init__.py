"""The network and its losses (docs/method.md)."""

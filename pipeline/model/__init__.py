"""The network and its losses (docs/concepts/method.md)."""

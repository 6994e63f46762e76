"""Training of the built-in re-identification network on rendered identities."""

"""Versions of the parsers whose code is this package's.

They stand apart from the parsers, because they are part of the fingerprint of what a run's masks are made from, and a
fingerprint must not wait for PyTorch. Models in ONNX and TorchScript files carry a version of their own in the TOML
file beside them; parsers of other packages say theirs when they are loaded.
"""

from __future__ import annotations

BUILTIN = "5"
"""Raised with every change of the weights or of what happens around the network."""

SCHP = "1"
"""Raised when the same checkpoint gives other masks than before."""

LABEL_MAPS = "1"
"""Raised when the same label maps are read as other labels than before."""


def version_of(kind: str) -> str | None:
    """The version of a parser of this package by its kind (`builtin`, `schp`, `label-maps`); None: it has none."""
    return {"builtin": BUILTIN, "schp": SCHP, "label-maps": LABEL_MAPS}.get(kind)

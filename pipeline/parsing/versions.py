"""Versions of the parsers in this package.

Separate from the parsers, because they are part of the fingerprint of masks, which must not import PyTorch. ONNX and
TorchScript models have their version in the TOML file beside them; parsers of other packages state their own.
"""

from __future__ import annotations

BUILTIN = "5"
"""Raised with every change of the weights, preprocessing or postprocessing."""

SCHP = "1"
"""Raised when the same checkpoint gives other masks."""

LABEL_MAPS = "1"
"""Raised when the same label maps are read as other labels."""


def version_of(kind: str) -> str | None:
    """Return the version of a parser of this package by its kind (`builtin`, `schp`, `label-maps`), or None."""
    return {"builtin": BUILTIN, "schp": SCHP, "label-maps": LABEL_MAPS}.get(kind)

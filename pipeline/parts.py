"""The seven parts of a person, in the order of every array that has one row or column a part."""

from __future__ import annotations

PARTS = ("head", "upper", "lower", "shoes", "top", "middle", "bottom")
"""Four semantic parts (found by attention) and three spatial strips (top, middle and bottom of the body)."""

SEMANTIC = PARTS[:4]
SPATIAL = PARTS[4:]
NUM_PARTS = len(PARTS)

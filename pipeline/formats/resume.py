"""The rule of resuming: begun work may be resumed if its recorded provenance equals the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import FormatError
from pipeline.formats.provenance import Difference, Provenance

START_OVER = "delete the file to start from scratch, or choose another name"
"""The hint of every file that cannot be resumed."""


def conflict(
    title: str,
    path: Path,
    recorded: Provenance,
    current: Provenance,
    *,
    incidental: Callable[[Difference], bool] | None = None,
) -> FormatError | None:
    """Return why begun work must not be resumed, as an error to raise; None if it may be.

    Args:
        title: What was begun, as in `mask file`.
        path: Where it lies.
        recorded: The record of the begun work.
        current: The record of the work that would resume it.
        incidental: Whether the two may differ in this (the device); None: in nothing.
    """
    differences = [each for each in recorded.diff(current) if incidental is None or not incidental(each)]
    if not differences:
        return None
    listed = "; ".join(map(str, differences))
    return FormatError(f"the {title} was created with other settings: {listed}", where=path, hint=START_OVER)

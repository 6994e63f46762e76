"""The rule of resuming: an unfinished file or artifact is resumed if its recorded provenance equals the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import FormatError
from pipeline.formats.provenance import Difference, Provenance

START_OVER = "delete it to start from scratch, or choose another output"
"""The hint of every file that cannot be resumed."""


def conflict(
    title: str,
    path: Path,
    recorded: Provenance,
    current: Provenance,
    *,
    incidental: Callable[[Difference], bool] | None = None,
) -> FormatError | None:
    """Return an error that names the differing settings, or None if the unfinished work can be resumed.

    Args:
        title: What is unfinished, as in `mask file`.
        path: Its path.
        recorded: Its recorded provenance.
        current: The provenance of what would resume it.
        incidental: Whether the two may differ in this (the device); None: in nothing.
    """
    differences = [each for each in recorded.diff(current) if incidental is None or not incidental(each)]
    if not differences:
        return None
    listed = "; ".join(map(str, differences))
    return FormatError(f"the {title} was created with other settings: {listed}", where=path, hint=START_OVER)

"""One short name for everything that decides a content."""

from __future__ import annotations

import json
from typing import Any

from pipeline.runtime.files import sha256_bytes


def fingerprint(obj: Any) -> str:
    """SHA-256 of `obj` as canonical JSON (sorted keys, no spaces, ASCII), as 64 hexadecimal digits.

    Args:
        obj: Anything that JSON can hold. NaN is refused: it would equal nothing, not even itself.

    Raises:
        TypeError: Something in `obj` has no form in JSON.
        ValueError: A number is NaN or infinite.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256_bytes(text.encode("ascii"))

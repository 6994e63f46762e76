"""The record of what decided a content: one flat mapping, one comparison, for artifacts and for files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipeline.runtime.files import sha256_bytes

JsonScalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One key whose value differs between two records; None stands for a key that one of them lacks."""

    key: str
    recorded: JsonScalar
    current: JsonScalar

    def __str__(self) -> str:
        if self.recorded is None:
            return f"{self.key} is new ({_shown(self.current)})"
        if self.current is None:
            return f"{self.key} is gone (was {_shown(self.recorded)})"
        return f"{self.key} changed from {_shown(self.recorded)} to {_shown(self.current)}"


class Provenance:
    """Settings, fingerprints of inputs and versions that decide a content: scalars by key.

    Two contents with equal records are equal, so unfinished work of one record may be resumed under an equal one. Keys
    whose value is None count as absent. `flatten` takes nested tables.

    Raises:
        TypeError: A value is not a scalar.
        ValueError: A number is NaN or infinite, which would not even equal itself.
    """

    __slots__ = ("_text", "values")

    values: Mapping[str, JsonScalar]

    def __init__(self, values: Mapping[str, JsonScalar]) -> None:
        table = {key: values[key] for key in sorted(values) if values[key] is not None}
        for key, value in table.items():
            if not isinstance(value, str | int | float):
                raise TypeError(f"{key} is a {type(value).__name__}, not a scalar")
        self.values = MappingProxyType(table)
        self._text = canonical_json(table)

    @classmethod
    def flatten(cls, table: Mapping[str, Any]) -> Provenance:
        """Return the record of a nested table: keys joined by dots, lists as JSON text."""
        return cls(dict(_flat(table, "")))

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read a record that `to_json` wrote; raises `TypeError` or `ValueError` if it is none."""
        return cls(dict(json.loads(text)))

    def to_json(self) -> str:
        """Return the record as canonical JSON: equal records give equal text."""
        return self._text

    def fingerprint(self) -> str:
        """Return the SHA-256 of `to_json`, as 64 hexadecimal digits."""
        return sha256_bytes(self._text.encode("ascii"))

    def diff(self, other: Provenance) -> tuple[Difference, ...]:
        """Compare this record (the recorded one) with `other` (the current one), by key; empty if they are equal."""
        return tuple(
            Difference(key, self.values.get(key), other.values.get(key))
            for key in sorted({*self.values, *other.values})
            if canonical_json(self.values.get(key)) != canonical_json(other.values.get(key))
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Provenance({dict(self.values)!r})"


def canonical_json(obj: Any) -> str:
    """Return `obj` as JSON with sorted keys, without spaces, in ASCII.

    Raises:
        TypeError: Something in `obj` has no form in JSON.
        ValueError: A number is NaN or infinite.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(obj: Any) -> str:
    """Return the SHA-256 of `canonical_json(obj)`, as 64 hexadecimal digits.

    Raises:
        TypeError: Something in `obj` has no form in JSON.
        ValueError: A number is NaN or infinite.
    """
    return sha256_bytes(canonical_json(obj).encode("ascii"))


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, JsonScalar]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", canonical_json(value)
        else:
            yield f"{prefix}{key}", value


def _shown(value: JsonScalar) -> str:
    # Of a fingerprint, the first digits are enough to tell two apart.
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:8]
    return canonical_json(value)

"""Look up files by name where the spelling on the disk may differ: Unicode normal form, case of the suffix."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


class NameIndex:
    """Finds files below a folder; folders are listed once, and only when a name does not exist as written.

    Args:
        root: Folder that names are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """Return the name on the disk of a relative POSIX path, or None if it does not exist."""
        if os.path.isfile(self.root / name):  # noqa: PTH113 (Path.is_file fails on names with NUL)
            return name
        found = PurePosixPath()
        for part in PurePosixPath(name).parts:
            actual = self._listing(self.root / found).get(name_key(part))
            if actual is None:
                return None
            found /= actual
        return found.as_posix() if (self.root / found).is_file() else None

    def examples(self, name: str, count: int = 2) -> list[str]:
        """Return some names that do exist where `name` was looked for, or else in the root."""
        folder = self.root / PurePosixPath(name).parent
        for each in dict.fromkeys((folder, self.root)):
            if listing := sorted(self._listing(each).values()):
                return [(each / entry).relative_to(self.root).as_posix() for entry in listing[:count]]
        return []

    def _listing(self, folder: Path) -> dict[str, str]:
        if folder not in self._listings:
            try:
                entries = sorted(os.listdir(folder))  # noqa: PTH208 (names alone)
            except (OSError, ValueError):
                entries = []
            self._listings[folder] = index_names(entries)
        return self._listings[folder]


def index_names(names: Iterable[str]) -> dict[str, str]:
    """Return names by their `name_key`; of several with one key, the first."""
    index: dict[str, str] = {}
    for name in names:
        index.setdefault(name_key(name), name)
    return index


def name_key(name: str) -> str:
    """Return what two spellings of a name have in common: normal form NFC, suffix in lower case."""
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if dot else suffix

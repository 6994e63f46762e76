"""Content hashes of images and data sets, which decide whether a stage must run again.

Hashing all images of a large set takes long, so a stat cache stores the hash of every file with its size, times of
change and inode. A file for which one of these differs is hashed again. Losing the cache, or an entry to another
process that writes at the same time, only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.records import Dataset, Record, unique_names
from pipeline.errors import DataError
from pipeline.runtime.files import atomic_write, read_json, sha256_file
from pipeline.runtime.progress import SILENT, Progress

_CACHE_FORMAT = 1
_THREADS = 8
_MANY = 2_000
"""Images from which on hashing may take long enough, on a slow disk, to show progress."""
# A file that changes twice within the clock's resolution keeps its time of change; files this young are not cached.
_SETTLED_NS = 2_000_000_000


class _Entry(NamedTuple):
    """State of a file when it was hashed; times in ns.

    `changed` is the ctime, which unlike `modified` cannot be set by programs.
    """

    size: int
    modified: int
    changed: int
    inode: int
    sha256: str

    def is_of(self, path: Path) -> bool:
        """Whether the file has not changed since."""
        try:
            return self[:4] == _stat(path)
        except OSError:
            return False


def _stat(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def image_hashes(
    root: Path, names: Iterable[str], *, cache: Path | None, progress: Progress = SILENT
) -> dict[str, str]:
    """Return the SHA-256 of the content of each image below `root`, by name, in the order of `names`.

    `cache` is the stat cache, created if it is missing, which several roots may share; None hashes everything.

    Raises:
        DataError: Some of the files cannot be read.
    """
    names = list(names)
    key = str(root.resolve())
    known = _load(cache).get(key, {}) if cache else {}
    started = time.time_ns()
    hashes = {name: known[name].sha256 for name in names if name in known and known[name].is_of(root / name)}
    changed = [name for name in names if name not in hashes]
    fresh: dict[str, _Entry] = {}
    unreadable: list[str] = []
    shown = progress if len(changed) >= _MANY else SILENT
    try:
        with shown.task("hash", total=len(changed)) as task, closing(_hashed(root, changed)) as results:
            for name, result in zip(changed, results, strict=True):
                task.advance()
                if isinstance(result, OSError):
                    unreadable.append(f"{name} ({result.strerror or result})")
                    continue
                hashes[name] = result.sha256
                if started - max(result.modified, result.changed) > _SETTLED_NS:
                    fresh[name] = result
    finally:
        # Also after Ctrl-C or an unreadable file.
        if cache and fresh:
            _store(cache, key, fresh)
    if unreadable:
        more = f" and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else ""
        raise DataError(
            f"{len(unreadable):,} of {len(names):,} images cannot be read: {', '.join(unreadable[:5])}{more}",
            where=root,
        )
    return {name: hashes[name] for name in names}


def dataset_fingerprint(
    dataset: Dataset, records: Sequence[Record], cache: Path | None, progress: Progress = SILENT
) -> str:
    """Return the SHA-256 over the records in order: relative path, identity, camera, split and content of the image.

    It does not depend on the location of the data set or on times.

    Raises:
        DataError: Some of the images cannot be read.
    """
    hashes = image_hashes(dataset.root, unique_names(records), cache=cache, progress=progress)
    digest = hashlib.sha256()
    for record in records:
        row = [record.path, record.pid, record.camid, record.split, hashes[record.path]]
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _hashed(root: Path, names: Sequence[str]) -> Generator[_Entry | OSError, None, None]:
    """The hashes of images, in order. If closed early, it only waits for those being read."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hash")
    try:
        yield from pool.map(_hash, [root / name for name in names])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _hash(path: Path) -> _Entry | OSError:
    try:
        # Before reading, so that a change meanwhile is detected by the next comparison.
        stat = _stat(path)
        return _Entry(*stat, sha256_file(path))
    except OSError as error:
        return error


def _load(cache: Path) -> dict[str, dict[str, _Entry]]:
    try:
        content = read_json(cache)
        if content["format"] != _CACHE_FORMAT:
            return {}
        return {
            root: {name: _Entry(int(a), int(b), int(c), int(d), str(e)) for name, (a, b, c, d, e) in entries.items()}
            for root, entries in content["roots"].items()
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        # A missing or broken cache counts as empty.
        return {}


def _store(cache: Path, root: str, fresh: dict[str, _Entry]) -> None:
    # Read again, to keep what another process stored meanwhile. Entries of replaced artifacts are dropped; a missing
    # data set may be on a disk that is mounted again.
    own = cache.parent.parent.resolve()
    roots = {
        known: entries
        for known, entries in _load(cache).items()
        if os.path.isdir(known) or not Path(known).is_relative_to(own)  # noqa: PTH112 (Path.is_dir may fail)
    }
    roots.setdefault(root, {}).update(fresh)
    text = json.dumps({"format": _CACHE_FORMAT, "roots": roots}, ensure_ascii=False, separators=(",", ":"))
    with contextlib.suppress(OSError), atomic_write(cache) as temporary:
        temporary.write_text(text, encoding="utf-8")

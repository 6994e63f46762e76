"""Content hashes of images, and of a data set: what decides whether a stage must run again.

Hashing all images takes a while on a large set, so a stat cache remembers the hash of every file whose size, times of
change and inode are still the same. The cache only ever saves time: a file that was touched is hashed again, and if
its content is equal its hash is too. Losing the cache, or an entry to another process that writes at the same time,
costs that time again and nothing else.
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
"""Images whose hashing takes long enough, on a slow disk at least, to be shown."""
# A file that changes twice within the clock's grain keeps its time of change; files this young are not remembered.
_SETTLED_NS = 2_000_000_000


class _Entry(NamedTuple):
    """A file as it was when it was hashed; times in ns.

    `changed` is the time of change of its directory entry, which unlike `modified` no program can set back.
    """

    size: int
    modified: int
    changed: int
    inode: int
    sha256: str

    def matches(self, stat: os.stat_result) -> bool:
        return self[:4] == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def image_hashes(
    root: Path, names: Iterable[str], *, cache: Path | None, progress: Progress = SILENT
) -> dict[str, str]:
    """SHA-256 of the content of each image.

    Args:
        root: Folder that the names are relative to.
        names: Image names.
        cache: The stat cache, made if it is missing; None hashes everything. Several roots may share one.
        progress: Told of images hashed, where there are many.

    Returns:
        The hash of each name, in the order given.

    Raises:
        DataError: Some of the files cannot be read.
    """
    names = list(names)
    key = str(root.resolve())
    known = _load(cache).get(key, {}) if cache else {}
    started = time.time_ns()
    hashes: dict[str, str] = {}
    changed: list[str] = []
    for name in names:
        remembered = known.get(name)
        if remembered is not None and _is_still(root / name, remembered):
            hashes[name] = remembered.sha256
        else:
            changed.append(name)

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
        # Also what was hashed before a Ctrl-C or an unreadable file.
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
    """SHA-256 over the records in their order: relative path, identity, camera, split and content of the image.

    Neither the place of the data set nor a time of change has a part in it.

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


def _is_still(path: Path, remembered: _Entry) -> bool:
    try:
        return remembered.matches(path.stat())
    except OSError:
        return False


def _hashed(root: Path, names: Sequence[str]) -> Generator[_Entry | OSError, None, None]:
    """The hashes of images, in order. Closed early, it waits for those that are being read and no others."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hash")
    try:
        yield from pool.map(_hash, [root / name for name in names])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _hash(path: Path) -> _Entry | OSError:
    try:
        # Looked at before reading: a change during the reading shows in the next look.
        stat = path.stat()
        return _Entry(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sha256_file(path))
    except OSError as error:
        return error


def _load(cache: Path) -> dict[str, dict[str, _Entry]]:
    try:
        content = read_json(cache)
        if content["format"] != _CACHE_FORMAT:
            return {}
        return {
            root: {name: _entry(*values) for name, values in entries.items()}
            for root, entries in content["roots"].items()
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        # A cache that is missing or broken is an empty one.
        return {}


def _entry(size: int, modified: int, changed: int, inode: int, sha256: str) -> _Entry:
    """Check what was read from JSON."""
    return _Entry(int(size), int(modified), int(changed), int(inode), str(sha256))


def _store(cache: Path, root: str, fresh: dict[str, _Entry]) -> None:
    # Read again, so that what another process found meanwhile is kept.
    # Artifacts that have been replaced are forgotten; a data set that is away may be on a disk that comes back.
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

"""Atomic writes, reserved space and hashes of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT_RESERVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF})
_ERROR_NUMBER = re.compile(r"errno = (\d+)")
_TEMPORARY = re.compile(r"^\..+\.\d+-[0-9a-f]{8}(\.[^.]*)?$")


def at_home(path: Path | str) -> Path:
    """Return a path with `~` and `~name` replaced by home folders.

    Unlike `Path.expanduser` it keeps the name of an unknown user, which the caller then reports as not found.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file so that readers, also after a power cut, see the old content or the new one, never a part.

    The folder is created if it is missing. On an error the temporary file is removed and `path` is left alone.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder with the same suffix, which does not exist yet; a clean exit renames it to `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden from globs for finished files; with the suffix, because writers choose formats by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether the name is one that `atomic_write` gives to an unfinished file."""
    return _TEMPORARY.match(path.name) is not None


def reserve(path: Path, size: int) -> None:
    """Allocate `size` bytes of the disk for a file, which is created if it is missing, so that writing cannot fail.

    HDF5 crashes the process if the disk is full when it closes a file. Where the file system cannot allocate, the
    free space is compared instead.

    Raises:
        OSError: There is not enough space (`is_no_space`), or the file cannot be written.
    """
    path.touch()
    # Not for appending: where the C library has to write the bytes itself, it refuses such files.
    with path.open("r+b") as stream:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, max(1, size))
                return
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
        status = os.fstat(stream.fileno())
        # Sparse files have fewer blocks than bytes; not every system counts blocks.
        allocated = 512 * getattr(status, "st_blocks", status.st_size // 512)
        if shutil.disk_usage(path.parent).free < size - allocated:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def error_number(error: BaseException) -> int | None:
    """Return the system's error number of a failed operation on a file; HDF5 has it in its text only."""
    found = _ERROR_NUMBER.search(str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def is_no_space(error: BaseException) -> bool:
    """Whether an error means that a disk, a quota or a limit on file sizes is exhausted."""
    # torch and safetensors report it in words.
    return error_number(error) in _NO_SPACE or "No space left" in str(error)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON by `atomic_write`. Keys keep their order; NaN is an error."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    try:
        # Windows flushes handles that may write only.
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        # Windows cannot open folders; its renames are durable without.
        if os.name == "nt" and path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files that appear whole or not at all, and their hashes."""

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

# Names that `atomic_write` gives to what is not finished.
_TEMPORARY = re.compile(r"^\..+\.\d+-[0-9a-f]{8}(\.[^.]*)?$")

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the errors that mean: there is no room."""

_CANNOT_RESERVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF})


def at_home(path: Path | str) -> Path:
    """A path that the user named, with `~` and `~name` made into home folders.

    Unlike `Path.expanduser` it does not fail where there is no such user: the file is then found missing, by its name.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on a clean exit what was written there becomes `path`.

    The folder of `path` is made if it is missing. On an error the temporary file is removed and `path` stays as it
    was. A reader, or a power cut, sees the old file or the new one, never a part.

    Args:
        path: The file to write.

    Yields:
        A path that does not exist yet, with the suffix of `path`, for any writer to create.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that no glob for finished files finds it; the suffix stays, because writers choose formats by it.
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
    """Give a file, which is made if it is missing, `size` bytes of the disk, so that writing to them cannot fail.

    HDF5 crashes the process where it meets the end of a disk while it closes a file; so the space is asked for before.
    Where the system or the disk cannot reserve, the free space is compared.

    Raises:
        OSError: There is not so much space (`is_no_space` tells), or the file cannot be written.
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
        there = 512 * getattr(status, "st_blocks", status.st_size // 512)
        if shutil.disk_usage(path.parent).free < size - there:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def is_no_space(error: OSError) -> bool:
    """Whether an error means that the disk, a quota or a limit on files leaves no room."""
    return error.errno in NO_SPACE


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, whole or not at all. Keys keep their order; NaN is refused."""
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
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fsync_path(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        # Windows opens no folders; there a rename is durable as it is.
        if os.name == "nt" and path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

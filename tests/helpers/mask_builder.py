"""Builds a mask file in a process of its own, which reports its progress, so that it can be killed amid the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.config import MasksConfig
from pipeline.masks import build


def main(out: Path, root: Path, parser: str, pause: float, progress: Connection) -> None:
    """Build in chunks of three images, with `pause` seconds after each.

    Sends a message when it begins, and one before each chunk is written.
    """
    original = build.parse_chunks

    def slow(*args: object, **options: object) -> Iterator[object]:
        for rows in original(*args, **options):  # type: ignore[arg-type]
            progress.send(None)
            yield rows
            time.sleep(pause)

    progress.send(None)
    build.parse_chunks = slow  # type: ignore[assignment]
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    build.build_mask_file(out, root=root, names=names, config=MasksConfig(parser=parser, batch_size=3, device="cpu"))

"""Builds a mask file in a process of its own, slowly enough to be killed in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.config import MasksConfig
from pipeline.masks import build


def main(out: Path, root: Path, parser: str, pause: float, begun: Connection) -> None:
    """Build with `pause` seconds between chunks of three images; says so when it begins."""
    quick = build.parse_chunks

    def slow(*args: object, **options: object) -> Iterator[object]:
        for rows in quick(*args, **options):  # type: ignore[arg-type]
            time.sleep(pause)
            yield rows

    build.parse_chunks = slow  # type: ignore[assignment]
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    begun.send(None)
    build.build_masks(out, root=root, names=names, config=MasksConfig(parser=parser, batch_size=3, device="cpu"))

"""Commands under torchrun: the first process runs the program, the others join in where it calls them."""

from __future__ import annotations

import contextlib
import os


def joined() -> bool:
    """In all processes but the first: work along until the first one ends, then say True.

    A command begins with `if joined(): return`, before it prints or touches anything.
    """
    if os.environ.get("RANK", "0") == "0":
        return False
    from pipeline.runtime.distributed import serve

    serve()
    return True


def leading() -> contextlib.AbstractContextManager[None]:
    """The block in which the first process may call the others; in a single process it costs nothing."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()
    from pipeline.runtime import distributed

    return distributed.leading()

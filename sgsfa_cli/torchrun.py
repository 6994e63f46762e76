"""Commands under torchrun: the first process runs the program, the others join in where it calls them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.errors import DeviceError


def joined() -> bool:
    """In all processes but the first: work along until the first one ends, then say True.

    A command begins with `if joined(): return`, before it prints or touches anything. Of errors only defects are
    shown here; all others are the first process's to tell.
    """
    if os.environ.get("RANK", "0") == "0":
        return False
    from pipeline.errors import SgsfaError
    from pipeline.runtime.distributed import serve

    try:
        serve()
    except SgsfaError as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        from sgsfa_cli.console import EXIT_INTERRUPTED

        sys.exit(EXIT_INTERRUPTED)
    return True


def leading() -> contextlib.AbstractContextManager[None]:
    """The block in which the first process may call the others; in a single process it costs nothing."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()
    from pipeline.runtime import distributed
    from sgsfa_cli.console import err, show_user_error

    def tell(error: DeviceError) -> None:
        # Bars, which nobody will end any more, have hidden it.
        err().show_cursor(True)
        show_user_error(error)

    return distributed.leading(tell)


def end(code: int) -> None:
    """End a process of a group that fell apart, at once: the usual end would wait for the others.

    Returns where there is no such group.
    """
    loaded = sys.modules.get("torch.distributed")
    if os.environ.get("WORLD_SIZE", "1") == "1" or loaded is None or not loaded.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

"""What a command does differently in one of several processes: only rank 0 reports, errors reach torchrun's report."""

from __future__ import annotations

import contextlib
import os
import sys


def is_main() -> bool:
    """Return whether this process prints results and progress: all but the other ranks of a complete launch."""
    if "RANK" not in os.environ:
        return True
    from pipeline.errors import ConfigError
    from pipeline.runtime.process_group import rank_info

    try:
        return rank_info().is_main
    except ConfigError:
        # Commands that work in several processes report it.
        return True


def record_error(error: BaseException) -> bool:
    """Hand an error to torchrun, which reports the first one of all processes.

    Returns:
        Whether this process has to report the error itself as well: rank 0 does, and so does every process that
        torchrun did not start.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return True
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from pipeline.runtime.process_group import LostProcessError

    # The process that ended first reports the cause.
    if not isinstance(error, LostProcessError):
        get_error_handler().record_exception(error)
    return is_main()


def leave(code: int) -> None:
    """End a process of a group that lost a member at once, because the usual end would wait for the others.

    Returns in all other processes.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

"""Signals that end a training, delayed until a step is finished."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

# Ctrl-C, a scheduler's end, a closed terminal, and SLURM's notice before a time limit (--signal=USR1@60).
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Interrupts:
    """Inside this context the first signal only sets `requested`; a second one raises KeyboardInterrupt.

    In a thread other than the main one, which receives no signals, it does nothing. A signal that is ignored (SIGHUP
    under nohup) stays so.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [each for each in _SIGNALS if each == signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

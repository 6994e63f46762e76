"""Compilation of the renderer's inner loops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba as nb

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function with numba, without the GIL; its machine code is cached on disk where that can be written."""
    compiled = nb.njit(nogil=True)(function)
    # In a read-only installation without a home folder there is no place for a cache; each process compiles then.
    with contextlib.suppress(RuntimeError):
        compiled.enable_caching()
    return cast(Callable[P, R], compiled)

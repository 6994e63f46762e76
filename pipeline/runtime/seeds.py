"""Independent random streams, each named by a seed and words; equal in every process and on every platform."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *words: int | str) -> int:
    """Return a 63-bit seed for the stream that `words` name under `seed`.

    Python's `hash` differs between processes, and sums of seeds collide, so the words are hashed with their types.
    Words must not contain the character U+001F, which separates them.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in (seed, *words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng(seed: int, *words: int | str) -> np.random.Generator:
    """Return NumPy's generator (PCG64) for the stream named by `words`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *words)))


def generator(seed: int, *words: int | str) -> torch.Generator:
    """Return a torch generator on the CPU for the stream named by `words`."""
    import torch  # here, because rendering workers need `rng` but not a second of torch's import

    stream = torch.Generator(device="cpu")
    stream.manual_seed(derive(seed, *words))
    return stream


def set_deterministic(on: bool) -> None:
    """Ask torch for deterministic kernels; where none exists, torch warns and continues."""
    import torch

    if on:
        # cuBLAS reads this at its first call in the process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on, warn_only=True)
    # Filling memory that is overwritten anyway changes no result and costs time at every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on

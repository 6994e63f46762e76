"""Devices and precisions."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    from pipeline.config import Precision

Context = Callable[[], contextlib.AbstractContextManager[object]]
"""Returns the context that something runs in, such as `autocast`."""

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA_HINT = "use `auto` or `cpu`, or install a PyTorch build for your GPU"


def resolve_device(name: str) -> torch.device:
    """Return the device of a configured name.

    Args:
        name: `auto` (the first CUDA device, else Apple's `mps`, else `cpu`), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        DeviceError: The name is not valid, or the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}", expected="auto | cpu | cuda | cuda:N | mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError(f"device {name!r} is not available: PyTorch finds no CUDA device", hint=_CUDA_HINT)
        if device.index is not None and device.index >= count:
            raise DeviceError(f"device {name!r} is not available", expected=f"cuda:0 to cuda:{count - 1}")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device 'mps' is not available", hint="use `auto` or `cpu`")
    elif device.type != "cpu":
        raise DeviceError(f"unsupported device {name!r}", expected="auto | cpu | cuda | cuda:N | mps")
    return device


def device_label(device: torch.device) -> str:
    """Return a name to show: `NVIDIA H100 (cuda:0)`, `AMD EPYC 7763, 2 threads (cpu)`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return f"{torch.cuda.get_device_name(index)} (cuda:{index})"
    if device.type == "cpu":
        return f"{_processor()}, {torch.get_num_threads()} threads (cpu)"
    return f"{platform.machine()} ({device.type})"


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a cached float32 vector on a device; it is shared and must not be changed.

    Copying even three numbers to a GPU waits for all work that is queued there.
    """
    return _constant(values, device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # A tensor created in inference mode cannot be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def autocast(device: torch.device, amp: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the context of forward passes in precision `amp`, an empty one for `off`.

    Raises:
        DeviceError: fp16 on the CPU, where its kernels are missing or slower than float32.
    """
    if amp == "off":
        return contextlib.nullcontext()
    if amp == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 is not available on the CPU", hint="set amp to bf16 or off")
    return torch.autocast(device.type, dtype=_AMP_DTYPES[amp])


def has_native_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16; False where PyTorch does not report it."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"

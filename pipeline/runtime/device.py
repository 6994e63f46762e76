"""Which device computes, and in which precision."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    from pipeline.config import Precision

Context = Callable[[], contextlib.AbstractContextManager[object]]
"""Makes the context that something runs in, such as `autocast`."""

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Of the allocators of torch (the processor's, also on Windows; CUDA's, MPS's and cuBLAS's), ONNX Runtime and C++.
_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "cublas_status_alloc_failed",
    "failed to allocate memory", "bad_alloc", "bad allocation",
)  # fmt: skip
_CUDA_HINT = "use `auto` or `cpu`, or install a build of PyTorch for your GPU"


def resolve_device(name: str) -> torch.device:
    """Turn a device name of the configuration into a device that is there.

    Args:
        name: `auto` (the first CUDA device, else Apple's `mps`, else `cpu`), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        DeviceError: The name is not a device, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is not a device", expected="auto | cpu | cuda | cuda:N | mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise DeviceError(f"{name!r} was asked for, but PyTorch sees no CUDA device here", hint=_CUDA_HINT)
        if device.index is not None and device.index >= count:
            raise DeviceError(f"there is no device {name!r}", expected=f"cuda:0 to cuda:{count - 1}")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("'mps' was asked for, but this machine has none", hint="use `auto` or `cpu`")
    elif device.type != "cpu":
        raise DeviceError(f"{name!r} is not supported", expected="auto | cpu | cuda | cuda:N | mps")
    return device


def device_label(device: torch.device) -> str:
    """A name of `device` for people: `NVIDIA H100 (cuda:0)`, `AMD EPYC 7763, 2 threads (cpu)`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return f"{torch.cuda.get_device_name(index)} (cuda:{index})"
    if device.type == "cpu":
        return f"{_processor()}, {torch.get_num_threads()} threads (cpu)"
    return f"{platform.machine()} ({device.type})"


def memory_exhausted(error: Exception) -> bool:
    """Whether an error of a computation means that the device's memory is too small for it.

    torch has an exception for CUDA, but only texts for the processor, for MPS and for what TorchScript passes on; ONNX
    Runtime has texts only.

    Args:
        error: What torch or ONNX Runtime raised.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def memory_watched(told: Callable[[], DeviceError]) -> Iterator[None]:
    """Turn an error that means that the device's memory is exhausted into one that says what to do.

    Args:
        told: Makes the error to raise instead.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_exhausted(error):
            raise
        raise told() from error


def no_room(device: torch.device, wanted: str, *, hint: str | None = None) -> DeviceError:
    """The error for a device without memory for what is wanted.

    Args:
        device: The device.
        wanted: What there is no memory for, with its verb: `the network does`, `images of 256x128 do`.
        hint: What helps besides freeing memory.
    """
    left = ""
    if device.type == "cuda":
        # Where not even a context fits, nothing can be asked.
        with contextlib.suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(device)
            left = f", of which {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        hint = "; ".join(filter(None, (hint, "nvidia-smi shows which other programs hold memory of the GPU")))
    return DeviceError(f"{wanted} not fit into the memory of {device}{left}", hint=hint)


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A float32 vector on a device, made once: copying even three numbers to a GPU waits for all it was given.

    The tensor is shared; it must not be changed.
    """
    return _constant(values, device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    # One that is made within inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def autocast(device: torch.device, amp: Precision) -> contextlib.AbstractContextManager[object]:
    """The context in which forwards run in precision `amp`; nothing at all for `off`.

    Raises:
        DeviceError: fp16 on the CPU, where its kernels are missing or slower than float32.
    """
    if amp == "off":
        return contextlib.nullcontext()
    if amp == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 does not work on the CPU", hint="set amp to bf16 or off")
    return torch.autocast(device.type, dtype=_AMP_DTYPES[amp])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"

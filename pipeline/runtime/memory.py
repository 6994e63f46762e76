"""Out of memory: recognised in every library's words, answered from one table of advice."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipeline.errors import DeviceError, SgsfaError

if TYPE_CHECKING:
    from pipeline.config import ExtractConfig, MasksConfig, MatchingConfig, TrainConfig

    Settings: TypeAlias = MasksConfig | TrainConfig | ExtractConfig | MatchingConfig

Work = Literal["masks", "train", "extract", "evaluate"]

# torch's allocator for the CPU (also on Windows) and C++'s exception.
_HOST = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")
# torch's allocators for CUDA and MPS, cuBLAS, cuDNN and ONNX Runtime.
_ANY = (*_HOST, "out of memory", "alloc_failed", "allocation_failed", "failed to allocate memory")
_CONTEXT_BYTES = 2e9
"""CUDA kernels and libraries of one process take less than this, besides what torch counts."""


@contextlib.contextmanager
def memory_advice(work: Work, settings: Settings) -> Iterator[None]:
    """Turn an out-of-memory error of torch, ONNX Runtime or NumPy into one that states what to change.

    Args:
        work: The kind of work, which selects the advice.
        settings: The configuration section of that work; the advice depends on its values.

    Raises:
        DeviceError: Memory is exhausted.
    """
    try:
        yield
    except SgsfaError:
        raise
    # ONNX Runtime's exceptions have no common base.
    except Exception as error:
        if not out_of_memory(error):
            raise
        on_host = _is_of_host(error) or settings.device == "cpu" or not _has_gpu()
        headline, advice = _ADVICE[work](settings, on_host)
        if on_host and settings.device != "cpu" and _has_gpu():
            # Fewer images on the GPU do not help: the images, targets or features fill the computer's memory.
            advice = ["close other programs, or use a machine with more memory"]
        elif not on_host and (others := _other_bytes()) > _CONTEXT_BYTES:
            advice.append(f"other programs hold {others / 1e9:.1f} GB of the GPU (nvidia-smi shows them)")
        place = "memory" if on_host else "GPU memory"
        raise DeviceError(f"not enough {place} {headline}", hint="; ".join(advice) or None, cause=error) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the computer or of a device is exhausted.

    torch has an exception type for CUDA only; errors of its CPU and MPS allocators and of ONNX Runtime are recognised
    by their messages.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _ANY)


def _masks(settings: MasksConfig, on_host: bool) -> tuple[str, list[str]]:
    size = settings.batch_size
    if size == "auto":
        return "to parse the images", _other_device("masks", on_host, "set masks.batch_size=1")
    return f"to parse {_images(size)} per batch", _other_device("masks", on_host, *_smaller("masks", size))


def _train(settings: TrainConfig, on_host: bool) -> tuple[str, list[str]]:
    images = settings.identities * settings.instances // _ranks()
    advice = []
    if settings.cuda_graph and not on_host:
        advice.append("train.cuda_graph=false lets steps and evaluations share memory (the run resumes)")
    smaller = [count for count in range(settings.accumulate + 1, images + 1) if images % count == 0]
    restarting = []
    if smaller:
        restarting.append(f"train.accumulate={smaller[0]} splits the same batches further")
    if settings.amp == "off" and not on_host:
        restarting.append("train.amp=bf16")
    restarting.append("a smaller backbone or image size")
    advice.append(f"{', '.join(restarting)} (these start training again)")
    return f"to train with {_images(images // settings.accumulate)} per forward pass", advice


def _extract(settings: ExtractConfig, on_host: bool) -> tuple[str, list[str]]:
    size = settings.batch_size
    return f"to embed {_images(size)} per batch", _other_device("extract", on_host, *_smaller("extract", size))


def _evaluate(settings: MatchingConfig, on_host: bool) -> tuple[str, list[str]]:
    advice = ["matching.rerank=false needs no distances between gallery images"] if settings.rerank else []
    advice = _other_device("matching", on_host, *advice)
    return "to compare the features", advice or ["use a machine with more memory, or a smaller gallery"]


_ADVICE: dict[Work, Callable[..., tuple[str, list[str]]]] = {
    "masks": _masks,
    "train": _train,
    "extract": _extract,
    "evaluate": _evaluate,
}


def _smaller(section: str, size: int) -> list[str]:
    return [f"set {section}.batch_size={size // 2} or less (the work done so far is kept)"] if size > 1 else []


def _other_device(section: str, on_host: bool, *advice: str) -> list[str]:
    return [*advice] if on_host else [*advice, f"set {section}.device=cpu"]


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _is_of_host(error: Exception) -> bool:
    text = str(error).lower()
    # The CUDA libraries also throw C++'s exception.
    return isinstance(error, MemoryError) or ("cuda" not in text and any(words in text for words in _HOST))


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def _ranks() -> int:
    distributed = sys.modules.get("torch.distributed")
    ready = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if distributed is not None and ready else 1


def _other_bytes() -> float:
    """Bytes of the current GPU that are held outside torch's allocator; 0 where that is not known."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    # Where not even a context fits, nothing can be asked.
    with contextlib.suppress(RuntimeError):
        free, total = torch.cuda.mem_get_info()
        return float(total - free - torch.cuda.memory_reserved())
    return 0.0

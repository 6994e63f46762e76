from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import ExtractConfig, MasksConfig, MatchingConfig, TrainConfig
from pipeline.errors import DataError, DeviceError
from pipeline.runtime.memory import memory_advice, out_of_memory

ONNX = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena: Failed to allocate memory for requested buffer of 8 GB"
MPS = "MPS backend out of memory (MPS allocated: 9.0 GB)"
CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError(MPS), True),
        (RuntimeError(CPU), True),
        (RuntimeError("std::bad_alloc"), True),
        (Exception(ONNX), True),
        (RuntimeError("size mismatch, m1: [2 x 3], m2: [4 x 5]"), False),
        (KeyboardInterrupt("out of memory"), False),
    ],
)
def test_out_of_memory__knows_the_words_of_each_library(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_out_of_memory__knows_numpy() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty((1 << 40, 1 << 10))
    assert out_of_memory(caught.value)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 30_000_000_000)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("work", "settings", "facts", "advice"),
    [
        ("masks", MasksConfig(batch_size=32), ["32 images"], ["masks.batch_size=16", "masks.device=cpu"]),
        ("masks", MasksConfig(batch_size=1), ["1 image "], ["masks.device=cpu"]),
        ("masks", MasksConfig(), ["parse"], ["masks.batch_size=1"]),
        ("extract", ExtractConfig(batch_size=64), ["64 images"], ["extract.batch_size=32", "extract.device=cpu"]),
        ("evaluate", MatchingConfig(rerank=True), ["compare"], ["matching.rerank=false", "matching.device=cpu"]),
        (
            "train",
            TrainConfig(identities=6, instances=5, accumulate=2),
            ["15 images"],
            ["train.accumulate=3 ", "train.amp=bf16", "train.cuda_graph=false", "again"],
        ),
    ],
)
def test_memory_advice__names_the_batch_and_settings_that_help(work, settings, facts, advice) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeviceError) as caught, memory_advice(work, settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    error = caught.value
    assert all(fact in error.message for fact in ("GPU", *facts))
    assert all(words in (error.hint or "") for words in (*advice, "49.0 GB", "nvidia-smi"))
    assert error.cause == "CUDA out of memory. Tried to allocate 2 GiB"
    assert error.exit_code == 2


@pytest.mark.usefixtures("gpu")
def test_memory_advice__tells_the_memory_of_the_computer_from_that_of_the_gpu() -> None:
    with pytest.raises(DeviceError) as caught, memory_advice("extract", ExtractConfig()):
        raise MemoryError("Unable to allocate 8.00 GiB")
    assert "GPU" not in caught.value.message
    assert "batch_size" not in (caught.value.hint or "")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_memory_advice__on_the_cpu_names_no_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError) as caught, memory_advice("extract", ExtractConfig(device=device, batch_size=8)):
        raise RuntimeError(CPU)
    assert "extract.batch_size=4" in (caught.value.hint or "")
    assert not any("GPU" in text or "device" in text for text in (caught.value.message, caught.value.hint or ""))
    with pytest.raises(DeviceError) as caught, memory_advice("train", TrainConfig(device=device)):
        raise RuntimeError(CPU)
    assert "train.accumulate=2" in (caught.value.hint or "")
    assert "cuda" not in (caught.value.hint or "")
    with pytest.raises(DeviceError) as caught, memory_advice("evaluate", MatchingConfig(device=device)):
        raise MemoryError
    assert caught.value.hint


def test_memory_advice__passes_other_errors_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("train", TrainConfig()):
        raise RuntimeError("shapes differ")
    with pytest.raises(DataError), memory_advice("train", TrainConfig()):
        raise DataError("out of memory of the user")
    with memory_advice("train", TrainConfig()):
        pass


def test_memory_advice__shares_the_batch_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(DeviceError, match="32 images"), memory_advice("train", TrainConfig(device="cpu")):
        raise MemoryError

import pytest
import torch

from pipeline.errors import DeviceError
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import (
    autocast,
    constant,
    device_label,
    memory_exhausted,
    memory_watched,
    no_room,
    resolve_device,
)


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert (torch.ones(2, device=device) + 1).sum().item() == 4


def test_cpu_has_a_name_for_people():
    assert device_label(resolve_device("cpu")).endswith("(cpu)")


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (torch.OutOfMemoryError(), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 1"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (Exception("[ONNXRuntimeError] : 6 : bfc_arena.cc:376 Failed to allocate memory for requested buffer"), True),
        (Exception("[ONNXRuntimeError] : 1 : FAIL : std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_exhausted_memory_can_be_told_from_other_faults(error: Exception, exhausted: bool) -> None:
    assert memory_exhausted(error) is exhausted


def test_what_the_processors_allocator_says_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # 4 exabytes
    assert memory_exhausted(caught.value)


def test_exhausted_memory_is_told_and_other_faults_pass() -> None:
    told, cpu, gpu = DeviceError("too small"), torch.device("cpu"), torch.device("cuda:0")
    for device in (cpu, None):
        with pytest.raises(DeviceError, match="too small") as caught, memory_watched(device, lambda: told):
            torch.empty(2**60)
        assert memory_exhausted(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="shapes"), memory_watched(cpu, lambda: told):
        raise RuntimeError("shapes")
    with pytest.raises(DeviceError, match="too small"), memory_watched(gpu, lambda: told):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("error", [MemoryError("1 GB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_the_computers_memory_is_not_taken_for_a_gpus(error: Exception) -> None:
    gpu, told = torch.device("cuda:0"), DeviceError("too small")
    with (
        pytest.raises(DeviceError, match="the memory of the computer is exhausted, not that of cuda:0") as caught,
        memory_watched(gpu, lambda: told),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_what_has_no_room_on_a_gpu_is_told_with_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, own = torch.device("cuda:1"), [4.7e9]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(0.3e9), int(85e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: own[0])
    error = no_room(gpu, "5 images do not fit", hint="take 4")
    assert error.message == (
        "5 images do not fit into the memory of cuda:1 (85.0 GB: 4.7 for this program's numbers, 80.0 for all else)"
    )
    assert error.hint == "take 4; nvidia-smi shows the other programs on the GPU"
    own[0] = 84e9  # No other process uses it.
    assert no_room(gpu, "5 images do not fit").hint is None

    def too_full(device: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", too_full)
    assert no_room(gpu, "5 images do not fit").message == "5 images do not fit into the memory of cuda:1"
    assert no_room(torch.device("cpu"), "5 images do not fit").details() == []


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "tpu:0"])
def test_a_word_that_is_no_device_is_refused(name):
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    assert "cuda:N" in (caught.value.expected or "")


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="no CUDA device"):
        resolve_device("cuda")


def test_a_cuda_number_too_high(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError) as caught:
        resolve_device("cuda:2")
    assert caught.value.expected == "cuda:0 to cuda:1"


def test_mps_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="mps"):
        resolve_device("mps")


def test_autocast_off_changes_nothing_and_bf16_does():
    a = torch.ones(4, 4)
    with autocast(torch.device("cpu"), "off"):
        assert (a @ a).dtype == torch.float32
    with autocast(torch.device("cpu"), "bf16"):
        assert (a @ a).dtype == torch.bfloat16


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(DeviceError, match="fp16"):
        autocast(torch.device("cpu"), "fp16")


def test_the_allocator_is_tuned_where_there_is_glibc(monkeypatch):
    import platform

    expected = platform.libc_ver()[0] == "glibc"
    assert tune_allocator.__wrapped__() is expected
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert tune_allocator.__wrapped__() is False


def test_constants_are_made_once_and_can_be_trained_with_by_any_caller():
    with torch.inference_mode():
        first = constant((0.25, 0.5), torch.device("cpu"))
    assert constant((0.25, 0.5), torch.device("cpu")) is first
    assert first.tolist() == [0.25, 0.5]
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad.tolist() == [0.25, 0.5]

import pytest
import torch

from pipeline.errors import DeviceError
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import (
    autocast,
    constant,
    device_label,
    resolve_device,
)


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert (torch.ones(2, device=device) + 1).sum().item() == 4


def test_cpu_has_a_name_for_people():
    assert device_label(resolve_device("cpu")).endswith("(cpu)")


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

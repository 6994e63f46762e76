from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import DeviceError
from pipeline.runtime.distributed import World

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("place", "asked", "given"),
    [
        (World(), "cuda", "cuda:0"),
        (World(), "cuda:1", "cuda:1"),
        (World(rank=5, size=8, local_rank=1, local_size=4), "cuda", "cuda:1"),
        (World(rank=1, size=2, local_rank=0, local_size=1), "cuda:3", "cuda:3"),
        (World(rank=1, size=2, local_rank=1, local_size=2), "cpu", "cpu"),
        (World(), "mps", "mps"),
    ],
)
def test_a_gpu_always_has_its_number(place: World, asked: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    # Without it `torch.cuda.set_device` refuses it.
    assert place.device(torch.device(asked)) == torch.device(given)


def test_the_device_of_a_process_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    place = World(rank=5, size=8, local_rank=1, local_size=4)
    assert place.take_device("auto") == torch.device("cuda:1")
    assert place.take_device("cpu") == torch.device("cpu")
    assert current == [torch.device("cuda:1")]

    def full(device: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "set_device", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(DeviceError, match="not even an empty program fits into the memory of cuda:1"):
        place.take_device("cuda")


@pytest.mark.parametrize("rank", range(3))
def test_processes_do_not_share_a_gpu(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    place = World(rank=rank, size=3, local_rank=rank, local_size=3)
    with pytest.raises(DeviceError, match="3 processes were started here, and there are 2 GPUs") as caught:
        place.device(torch.device("cuda"))
    assert caught.value.hint == "torchrun --nproc-per-node=2"
    with pytest.raises(DeviceError, match="3 processes cannot share cuda:0"):
        place.device(torch.device("cuda:0"))


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    return subprocess.run(
        [*command, str(HERE / arguments[0]), *arguments[1:]],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_calls_of_any_size_reach_the_others() -> None:
    done = launch("posting_worker.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joining", "working"])
def test_the_others_error_is_told_whatever_the_leader_does(mode: str) -> None:
    done = launch("ending_worker.py", mode)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert said.count("process 1 of 2 stopped with WeightsError: planted") == 1, done.stderr
    assert "pull it out" in said
    assert "Stopped." not in said
    assert "start the same command again" not in said, "the other's advice, and no other"
    assert said.count("Traceback") == 1, "torchrun's"

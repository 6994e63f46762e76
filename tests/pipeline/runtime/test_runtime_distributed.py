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


@pytest.mark.parametrize("rank", range(3))
def test_processes_do_not_share_a_gpu(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    place = World(rank=rank, size=3, local_rank=rank, local_size=3)
    with pytest.raises(DeviceError, match="3 processes were started here, and there are 2 GPUs") as caught:
        place.device(torch.device("cuda"))
    assert caught.value.hint == "torchrun --nproc-per-node=2"
    with pytest.raises(DeviceError, match="3 processes cannot share cuda:0"):
        place.device(torch.device("cuda:0"))


@pytest.mark.slow
def test_calls_of_any_size_reach_the_others() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    done = subprocess.run(
        [*command, str(HERE / "posting_worker.py")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"

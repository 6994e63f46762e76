from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError, DeviceError
from pipeline.runtime.process_group import RankInfo, rank_info
from sgsfa_cli import torchrun

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("ranks", "asked", "given"),
    [
        (RankInfo(), "cuda", "cuda:0"),
        (RankInfo(), "cuda:1", "cuda:1"),
        (RankInfo(rank=5, world_size=8, local_rank=1, local_world_size=4), "cuda", "cuda:1"),
        (RankInfo(rank=1, world_size=2, local_rank=0, local_world_size=1), "cuda:3", "cuda:3"),
        (RankInfo(rank=1, world_size=2, local_rank=1, local_world_size=2), "cpu", "cpu"),
        (RankInfo(), "mps", "mps"),
    ],
)
def test_device__gpu_has_an_index(ranks: RankInfo, asked: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    # Without it `torch.cuda.set_device` refuses it.
    assert ranks.device(torch.device(asked)) == torch.device(given)


def test_select_device__makes_the_gpu_current(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    ranks = RankInfo(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert ranks.select_device("auto") == torch.device("cuda:1")
    assert ranks.select_device("cpu") == torch.device("cpu")
    assert current == [torch.device("cuda:1")]


@pytest.mark.parametrize("rank", range(3))
def test_device__processes_do_not_share_a_gpu(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = RankInfo(rank=rank, world_size=3, local_rank=rank, local_world_size=3)
    with pytest.raises(DeviceError, match=r"3 processes.* 2 GPUs") as caught:
        ranks.device(torch.device("cuda"))
    assert caught.value.hint == "torchrun --nproc-per-node=2"
    with pytest.raises(DeviceError, match="cuda:0"):
        ranks.device(torch.device("cuda:0"))


TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, RankInfo()),
        (TORCHRUN, RankInfo(rank=1, world_size=2, local_rank=1, local_world_size=2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, RankInfo()),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}, RankInfo()),
    ],
)
def test_rank_info__reads_what_torchrun_sets(environ: dict[str, str], expected: RankInfo) -> None:
    assert rank_info(environ) == expected


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two'"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"LOCAL_RANK": "3"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "LOCAL_RANK"),
        (TORCHRUN | {"RANK": "2"}, "contradict"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "contradict"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "contradict"),
    ],
)
def test_rank_info__invalid_variables_are_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rank_info(environ)
    assert named in caught.value.message
    assert all(f"{name}={value}" in (caught.value.where or "") for name, value in environ.items())
    assert "torchrun" in (caught.value.hint or "")
    assert f"unset {' '.join(name for name in TORCHRUN if name in environ)}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("environ", "printed"), [({}, True), ({"RANK": "1"}, True), ({"RANK": "x"}, True), (TORCHRUN, False)]
)
def test_is_main__only_ranks_of_a_complete_launch_are_silent(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], printed: bool
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert torchrun.is_main() is printed


@pytest.mark.parametrize("world_size", ["2", "two"])
def test_command__invalid_launcher_variables_exit_with_2(tmp_path: Path, world_size: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sgsfa_cli", "train", "--preset", "demo"],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[2]), "WORLD_SIZE": world_size, "RANK": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "WORLD_SIZE" in done.stderr
    assert "Traceback" not in done.stderr


def launch(mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    return subprocess.run(
        [*command, str(HERE / "process_group_worker.py"), mode],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_process_group__collectives_work_in_consecutive_groups() -> None:
    done = launch("collectives")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.mark.slow
def test_process_group__torchrun_reports_the_error_of_another_rank() -> None:
    done = launch("fail")
    assert done.returncode != 0
    report = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in report
    assert "WeightsError: planted" in report
    assert done.stderr.count("internal error") == 0

"""Trainings in several processes, and killed ones; slow, because each process has to start."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.formats.features import Features
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.model.network import build_model
from pipeline.training.metrics_log import read_metrics
from tests.helpers.training import HEIGHT, WIDTH, make_people, small_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
WORKERS = ROOT / "tests" / "helpers"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(*arguments: str, processes: int = 1) -> list[str]:
    if processes == 1:
        return [sys.executable, *arguments]
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments
    ]  # fmt: skip


def training_command(folder: Path, processes: int = 1, epochs: int = 4) -> list[str]:
    """`sgsfa train` on a tiny data set whose true label maps give the masks."""
    settings = {
        "name": "tiny",
        "artifacts": str(folder / "artifacts"),
        "data.source": f"csv:{folder / 'people' / 'people.csv'}",
        "model.kind": "baseline",
        "model.backbone": "mobilenet_v2",
        "model.weights": "none",
        "model.height": HEIGHT,
        "model.width": WIDTH,
        "model.global_dim": 8,
        "train.identities": 4,
        "train.instances": 2,
        "train.epoch_length": "identities",
        "train.epochs": epochs,
        "train.ema": 0.9,
        "train.checkpoint_minutes": 0,
        "train.device": "cpu",
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return launch("-m", "sgsfa_cli", "train", *options, processes=processes)


def make_csv(folder: Path) -> None:
    dataset = make_people(folder / "people")
    rows = [f"{record.path},{record.pid},{record.camid},{record.split}" for record in dataset.records]
    (folder / "people" / "people.csv").write_text("\n".join(["path,pid,camid,split", *rows]) + "\n")


def result(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "artifacts" / "train").glob("*/model.safetensors")
    return load_checkpoint(path)[0].state_dict()


def test_processes__two_give_the_losses_of_one(tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = launch(str(WORKERS / "frozen_worker.py"), str(out), processes=processes)
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        lines = list(read_metrics(out / "run" / "metrics.jsonl"))
        losses.append([line["loss"] for line in lines if line["kind"] == "step"])
        assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [5, 10]
    assert len(losses[0]) == 20
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-5 * max(losses[0])


def test_kill__random_moments_end_bit_equal(tmp_path: Path) -> None:
    for name in ("straight", "killed"):
        make_csv(tmp_path / name)
    subprocess.run(training_command(tmp_path / "straight"), env=environment(), check=True, timeout=300)
    command = training_command(tmp_path / "killed")
    moments = random.Random(0)
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            # Once training has begun (a state appears), a little later.
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if kills >= 3 or list((tmp_path / "killed" / "artifacts").glob("train/*.partial/state/images/*.h5")):
                    break
                time.sleep(0.01)
            if kills < 3:
                process.wait(timeout=moments.uniform(0.0, 1.5))
            else:
                process.wait(timeout=120)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        finally:
            assert process.stderr is not None
            process.stderr.close()
    assert kills >= 1
    one, two = result(tmp_path / "straight"), result(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list((tmp_path / "killed" / "artifacts").rglob("*.partial"))


def test_processes__two_extract_the_features_of_one(tmp_path: Path) -> None:
    make_csv(tmp_path)
    network = build_model(small_model(global_dim=8, necks=True), 3)
    meta = CheckpointMeta(small_model(global_dim=8, necks=True), 3, (0.1,) * 7)
    save_checkpoint(tmp_path / "model.safetensors", network, meta)
    found = []
    for processes in (1, 2):
        out = tmp_path / f"features-{processes}.h5"
        words = {"checkpoint": tmp_path / "model.safetensors", "data": f"csv:{tmp_path}/people/people.csv", "out": out}
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        command = launch(
            "-m", "sgsfa_cli", "extract", *options, "--batch-size", "4", "--device", "cpu",
            processes=processes,
        )  # fmt: skip
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found.append(Features.load(out))
    one, two = found
    assert len(one.names) == 12
    assert list(one.names) == list(two.names)
    assert (one.pids.tolist(), one.camids.tolist()) == (two.pids.tolist(), two.camids.tolist())
    for name in ("parts", "global_feature", "visibility"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-5)
    assert {path.name for path in tmp_path.glob("features-2*")} == {"features-2.h5"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kill__ten_at_random_steps_end_bit_equal(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKERS / "killed_worker.py"), str(tmp_path), "10"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 10
    assert len(set(kills)) >= 5, "they are spread over the run"
    straight = load_checkpoint(tmp_path / "straight" / "model.safetensors")
    for name in ("killed", "halves"):
        network, meta = load_checkpoint(tmp_path / name / "model.safetensors")
        assert meta.thresholds == straight[1].thresholds
        one, two = straight[0].state_dict(), network.state_dict()
        assert not [key for key in one if not torch.equal(one[key], two[key])]
    lines = [list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("straight", "killed", "halves")]
    losses = [[(line["step"], line["loss"]) for line in each if line["kind"] == "step"] for each in lines]
    assert [step for step, _ in losses[0]] == list(range(1, 21))
    assert losses[0] == losses[1] == losses[2]


def rank_of(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((each[5:].decode() for each in variables if each.startswith(b"RANK=")), None)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
def test_kill__one_process_ends_all_and_the_run_resumes(tmp_path: Path) -> None:
    make_csv(tmp_path)
    command = training_command(tmp_path, processes=2, epochs=400)
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            states = (tmp_path / "artifacts").glob
            while not list(states("train/*.partial/state/state.safetensors")) and time.monotonic() < deadline:
                time.sleep(0.1)
            (second,) = (child for child in children(process.pid) if rank_of(child) == "1")
            os.kill(second, signal.SIGKILL)
            begun = time.monotonic()
            process.wait(timeout=60)
            assert time.monotonic() - begun < 60
        finally:
            process.kill()
            process.wait()
    assert process.returncode != 0
    text = (tmp_path / "output").read_text()
    # The others receive SIGTERM and lose the connection, in any order.
    text, _, report = text.partition("ChildFailedError")
    assert "another process of this run ended" in text or "interrupted" in text
    assert "rank      : 1 (" in report
    assert "SIGKILL" in report
    # One process resumes where two were stopped.
    done = subprocess.Popen(command[:1] + command[command.index("-m", 3) :], env=environment(), stderr=subprocess.PIPE)
    try:
        assert done.stderr is not None
        said = ""
        deadline = time.monotonic() + 120
        while "resuming training at step" not in said and time.monotonic() < deadline:
            said += done.stderr.readline().decode()
        assert "resuming training at step" in said
    finally:
        done.kill()
        done.wait()
        assert done.stderr is not None
        done.stderr.close()


@pytest.mark.parametrize(("rank", "kind"), [(0, "defect"), (1, "user")])
def test_error__in_one_process_ends_all_and_is_the_root_cause(tmp_path: Path, rank: int, kind: str) -> None:
    make_csv(tmp_path)
    command = training_command(tmp_path, processes=2)
    place = command.index("-m", 3)
    command[place : place + 2] = [str(WORKERS / "failing_worker.py"), str(rank), kind]
    # The collective that the other process waits in times out after a day.
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    report = done.stderr.partition("Root Cause")[2]
    assert f"rank      : {rank} (" in report
    if kind == "user":
        assert "DeviceError: planted for users" in report
        assert "internal error" not in done.stderr
    else:
        assert "ValueError: planted for developers" in report

"""The real stages, one after the other, on a handful of rendered people."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sgsfa_cli.main import app

ROOT = Path(__file__).resolve().parents[2]

TINY = """
name = "tiny"
[synth]
ids = 8
cameras = 2
shots = 2
height = 64
width = 32
jobs = 1
[masks]
parser = "label-maps"
[model]
backbone = "resnet18"
weights = "none"
height = 64
width = 32
part_dim = 32
[train]
epochs = 2
identities = 2
instances = 2
checkpoint_minutes = 0
[extract]
batch_size = 4
[matching]
figures = 1
histogram = true
"""


def call(folder, *arguments, code=0):
    """Run a command in this process, in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments)
    finally:
        os.chdir(before)
    assert result.exit_code == code, result.output + "".join(map(str, result.exc_info or ()))
    assert "Traceback" not in result.output
    return result


def start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sgsfa_cli", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was put in the background ignores Ctrl-C, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with the configuration and the rendered people."""
    folder = tmp_path_factory.mktemp("rendered")
    (folder / "sgsfa.toml").write_text(TINY)
    call(folder, "run", "--until", "synth", "--quiet")
    return folder


@pytest.fixture(scope="module")
def finished(rendered, tmp_path_factory):
    """The same after an undisturbed run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(rendered, folder)
    call(folder, "run", "--quiet")
    return folder


@pytest.fixture
def fresh(rendered, tmp_path):
    """A folder of its own, in which only the people are rendered."""
    folder = tmp_path / "run"
    shutil.copytree(rendered, folder)
    return folder


@pytest.fixture
def done(finished, tmp_path):
    """A folder of its own, in which all is done."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


def only(folder, pattern):
    (found,) = folder.glob(f"artifacts/{pattern}")
    return found


def arrays(path):
    """All datasets of an HDF5 file."""
    with h5py.File(path) as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return {name: file[name][()] for name in names}


def assert_same_files(first, second):
    """Masks, weights, features and metrics of two folders are equal."""
    for pattern in ("masks/*/masks.h5", "extract/*/*/features.h5"):
        one, other = arrays(only(first, pattern)), arrays(only(second, pattern))
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=f"{pattern} {name}")
    one, other = (load_file(only(folder, "train/*/model.safetensors")) for folder in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    one, other = (json.loads(only(folder, "eval/*/result.json").read_text()) for folder in (first, second))
    for name, result in one["tests"].items():
        for key in ("metrics", "counts", "breakdown"):
            assert result[key] == other["tests"][name][key], key


def leftovers(folder):
    return [str(path) for path in folder.glob("artifacts/*/*") if path.name[-8:].strip("0123456789abcdef")]


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_changed_rule_evaluates_only(done):
    text = call(done, "run").stdout
    assert "up to date" in text
    assert "colour histogram" in text
    report = json.loads(call(done, "run", "--set", "matching.rule=mean", "--json", "--quiet").stdout)
    assert [stage["action"] for stage in report["stages"]] == [*["reused"] * 4, "ran"]
    assert "intact" in call(done, "artifacts", "verify").stdout
    assert leftovers(done) == []


@pytest.mark.slow
def test_an_idle_run_does_not_wait_for_torch(done):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sgsfa_cli.main import app\n"
        "result = CliRunner().invoke(app, ['run'])\n"
        "assert 'up to date' in result.stdout, result.output\nprint('torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=done, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_a_run_from_scratch_gives_the_same(finished, fresh):
    call(fresh, "run", "--quiet")
    assert_same_files(finished, fresh)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_files(finished, fresh):
    draw = random.Random(5)
    # Each stage is waited for and then killed after a while; and once it is killed whenever.
    for stage in ("masks", "train", "train", "extract"):
        process = start(fresh, "run")
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            if list(fresh.glob(f"artifacts/{stage}/*.partial")):
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 2.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    call(fresh, "run", "--quiet")
    assert_same_files(finished, fresh)
    call(fresh, "artifacts", "prune", "--yes")
    assert leftovers(fresh) == []


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_next_run_resumes(fresh):
    process = start(fresh, "run")
    # Once a step is logged: before, there is nothing to resume, and while modules are being set up Python may lose the
    # KeyboardInterrupt in a callback of the garbage collector.
    while process.poll() is None and not any(
        log.stat().st_size for log in fresh.glob("artifacts/train/*.partial/metrics.jsonl")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    states = {each["stage"]: each["state"] for each in json.loads(call(fresh, "status", "--json").stdout)["stages"]}
    assert states["train"] == "incomplete"
    assert "resumed and finished" in call(fresh, "run").stdout


# Bad input: a message that a stranger understands, and the right code


@pytest.mark.slow
def test_an_image_that_ends_early_is_listed_and_the_run_can_continue(rendered, tmp_path, tiny_parser):
    people = tmp_path / "people"
    shutil.copytree(only(rendered, "synth/*/dataset"), people)
    with (people / "dataset.csv").open(newline="") as stream:
        victim = next(row["path"] for row in csv.DictReader(stream) if row["split"] == "train")
    (people / victim).write_bytes((people / victim).read_bytes()[:300])
    text = TINY.replace('parser = "label-maps"', f'parser = "{tiny_parser}"')
    (tmp_path / "sgsfa.toml").write_text(text + f'[data]\nsource = "synthetic:{people}"\n')
    for _ in range(2):
        result = call(tmp_path, "run", "--quiet", code=3)
        assert victim in result.stderr
        assert "masks.allow_failed=true" in result.stderr
    # It continues, trains without the image, and still reports it.
    result = call(tmp_path, "run", "--quiet", "--set", "masks.allow_failed=true", code=3)
    assert victim in result.stderr
    assert "colour histogram" in result.stdout


@pytest.mark.slow
def test_files_that_do_not_fit(done, tmp_path):
    bomb = tmp_path / "bomb.pth"
    bomb.write_bytes(b"cos\nsystem\n(S'touch bombed'\ntR.")
    result = call(done, "run", "--quiet", "--set", f"model.weights={bomb}", code=2)
    assert "bomb.pth" in result.stderr
    assert not (done / "bombed").exists()

    odd = tmp_path / "odd.safetensors"
    save_file({"conv1.weight": torch.zeros(3, 3)}, odd)
    for key in ("model.weights", "extract.checkpoint"):
        assert "odd.safetensors" in call(done, "run", "--quiet", "--set", f"{key}={odd}", code=2).stderr

    masks = only(done, "masks/*/masks.h5")
    shutil.copy(masks, tmp_path / "other.h5")
    other = ("--set", f"masks.file={tmp_path / 'other.h5'}", "--set", "synth.ids=9", "--set", "synth.seed=1")
    call(done, "run", "--quiet", *other, "--until", "synth")
    assert "other.h5" in call(done, "run", "--quiet", *other, code=2).stderr

    (tmp_path / "empty.h5").write_bytes(b"")
    assert "empty.h5" in call(done, "run", "--quiet", "--set", f"masks.file={tmp_path / 'empty.h5'}", code=2).stderr
    features = only(done, "extract/*/*/features.h5")
    report = json.loads(call(done, "run", "--quiet", "--json", "--set", f"matching.features={features}").stdout)
    assert [stage["stage"] for stage in report["stages"]] == ["eval"]
    assert set(report["results"]["tests"]) == {"features"}
    assert "empty.h5" in call(done, "run", "--set", f"matching.features={tmp_path / 'empty.h5'}", code=2).stderr


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("path,pid,camid\nimages/a.jpg,1,1\n", "split"),
        ("path,pid,camid,split\n../outside.jpg,1,1,train\n", "../outside.jpg"),
        ("path,pid,camid,split\n", "people.csv"),
        (None, "people.csv"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, part):
    (tmp_path / "outside.jpg").write_bytes(b"x")
    (tmp_path / "list").mkdir()
    if text is not None:
        (tmp_path / "list" / "people.csv").write_text(text)
    result = call(tmp_path, "run", "--set", f"data.source=csv:{tmp_path / 'list' / 'people.csv'}", code=2)
    assert part in result.stderr.replace("\n", "")


def test_folders_that_are_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        result = call(tmp_path, "run", "--set", f"data.source=market1501:{tmp_path / folder}", code=2)
        assert folder in result.stderr.replace("\n", "")

"""The fault campaign: every command and stage under failing disks, vanishing inputs, signals, clocks and rivals.

After each fault: no traceback, no file under a final name that is not complete, and the same command, repeated,
ends with the results of an undisturbed run.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.store.store import ArtifactStore
from tests.helpers.faults import FaultServer, Result, fault_server

pytestmark = pytest.mark.slow

SETTINGS = """
name = "tiny"
[data]
source = "synthetic:../people"
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
backbone = "mobilenet_v2"
weights = "none"
height = 64
width = 32
part_dim = 16
[train]
epochs = 2
identities = 2
instances = 2
checkpoint_minutes = 0
[extract]
batch_size = 4
[matching]
pictures = 1
"""

ERRORS = {"write": (errno.ENOSPC, errno.EIO), "open": (errno.EACCES, errno.EIO), "rename": (errno.EIO,)}
EXTERNAL = (0, 2, 3)
INJECTED: Counter[tuple[str, str]] = Counter()
"""Faults by command and kind, for the record."""


@dataclass
class Campaign:
    """The server, a data set, and what an undisturbed run of each command leaves."""

    server: FaultServer
    root: Path
    commands: Mapping[str, tuple[str, ...]]
    reference: Mapping[str, Any]

    def folder(self, name: str) -> Path:
        """Return a new working folder."""
        folder = self.root / name
        folder.mkdir()
        (folder / "sgsfa.toml").write_text(SETTINGS)
        return folder

    def inject(self, command: str, folder: Path, kind: str, **fault: Any) -> Result:
        """Run a command under a fault and check that it ends as it should."""
        INJECTED[command, kind] += 1
        result = self.server.run(folder, *self.commands[command], **{"folder": str(folder), **fault})
        signals = (-fault["signal"],) if "signal" in fault else ()
        assert result.code in (*EXTERNAL, *signals), result
        assert "Traceback" not in result.err, result
        assert "internal error" not in result.err, result
        check_final_names(folder)
        return result

    def complete(self, command: str, folder: Path) -> None:
        """Repeat the command without a fault; its results are those of the undisturbed run."""
        result = self.server.run(folder, *self.commands[command])
        assert result.code == 0, result
        found = contents(folder)
        assert found.keys() == self.reference[command].keys(), result
        assert [name for name, content in found.items() if content != self.reference[command][name]] == []
        for path in folder.rglob("*"):
            assert not path.name.endswith((".partial", ".lock")), path


def check_final_names(folder: Path) -> None:
    """Whatever has its final name is complete."""
    store = ArtifactStore(folder / "artifacts")
    for artifact in store.list():
        assert artifact.state != "broken"
        if artifact.manifest is not None:
            assert store.verify(artifact) == ()
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r", locking=False) as file:
            assert (file["status"][:] == 1).all()
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


def contents(folder: Path) -> dict[str, Any]:
    """Return what results consist of, by path: images, arrays, weights and metrics; no times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".jpg", ".png", ".safetensors"):
            found[name] = path.read_bytes() if path.suffix != ".png" or "labels" in name else None
        elif path.suffix == ".h5":
            with h5py.File(path, "r", locking=False) as file:
                found[name] = {key: np.asarray(file[key]).tobytes() for key in file}
        elif path.name == "result.json":
            found[name] = None
    return found


def calls(campaign: Campaign, command: str, kind: str) -> int:
    """Count the calls of a kind on the files of a command."""
    folder = campaign.folder(f"count-{command}-{kind}")
    result = campaign.server.run(folder, *campaign.commands[command], folder=str(folder), kinds=[kind])
    assert result.code == 0, result
    assert result.count
    shutil.rmtree(folder)
    return result.count


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    root = tmp_path_factory.mktemp("campaign")
    (root / "output").mkdir()
    with fault_server(root / "output") as server:
        (root / "sgsfa.toml").write_text(SETTINGS)
        sizes = ("--ids", "8", "--cameras", "2", "--shots", "2", "--size", "64x32", "--jobs", "1")
        done = server.run(root, "data", "synth", "people", *sizes)
        assert done.code == 0, done
        done = server.run(root, "train", "--data", "synthetic:people", "--set", "train.epochs=1")
        assert done.code == 0, done
        (checkpoint,) = root.glob("artifacts/train/*/model.safetensors")
        done = server.run(
            root, "extract", "--data", "synthetic:people", "--checkpoint", str(checkpoint), "--out", "f.h5"
        )
        assert done.code == 0, done
        (query,) = sorted((root / "people" / "query").glob("*.jpg"))[:1]
        commands = {
            "data synth": ("data", "synth", "out", *sizes),
            "data check": ("data", "check", "synthetic:../people"),
            "masks build": ("masks", "build", "synthetic:../people", "--parser", "label-maps", "--out", "m.h5"),
            "run": ("run",),
            "train": ("train", "--data", "synthetic:../people"),
            "extract": ("extract", "--data", "synthetic:../people", "--checkpoint", str(checkpoint), "--out", "f.h5"),
            "eval": ("eval", "--features", "../f.h5", "--data", "synthetic:../people", "--out", "results"),
            "search": ("search", str(query), "--gallery", "../f.h5", "--checkpoint", str(checkpoint)),
        }
        campaign = Campaign(server, root, commands, reference := {})
        for name in commands:
            folder = campaign.folder(f"reference-{name.replace(' ', '-')}")
            done = server.run(folder, *commands[name])
            assert done.code == 0, done
            reference[name] = contents(folder)
        yield campaign
    print(
        "\nfaults injected:", *(f"{command}: {kind} {count}" for (command, kind), count in INJECTED.items()), sep="\n  "
    )


WRITING = ("data synth", "masks build", "run", "extract", "eval")


@pytest.mark.parametrize("command", [*WRITING, "train"])
def test_failing_disks(campaign: Campaign, command: str) -> None:
    draw = random.Random(command)
    folder = campaign.folder(f"disk-{command.replace(' ', '-')}")
    for kind, numbers in ERRORS.items():
        count = calls(campaign, command, kind)
        for number in numbers:
            # The last call as well: it comes when everything but the name is there.
            for first in sorted({draw.randint(1, count), count}):
                label = f"{errno.errorcode[number]} on {kind}"
                campaign.inject(command, folder, label, kinds=[kind], first=first, errno=number)
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", ["data check", "masks build", "run", "extract", "eval", "search"])
def test_inputs_that_fail_or_vanish(campaign: Campaign, command: str) -> None:
    draw = random.Random(command)
    folder = campaign.folder(f"input-{command.replace(' ', '-')}")
    people = campaign.root / "people"
    inputs = {"folder": str(campaign.root), "kinds": ["read"]}
    count = campaign.server.run(folder, *campaign.commands[command], **inputs).count or 1
    shutil.rmtree(folder)
    folder = campaign.folder(folder.name)
    for number in (errno.EIO, errno.EACCES):
        for first in {draw.randint(1, count) for _ in range(2)}:
            label = f"{errno.errorcode[number]} on read"
            campaign.inject(command, folder, label, **inputs, first=first, errno=number)
    for first in {draw.randint(1, count) for _ in range(2)}:
        campaign.inject(command, folder, "vanishing input", **inputs, first=first, vanish=str(people))
        away = people.with_name("people.away")
        if away.exists():
            away.rename(people)
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_at_random_moments(campaign: Campaign, command: str, number: signal.Signals) -> None:
    draw = random.Random(f"{command} {number}")
    folder = campaign.folder(f"{number.name}-{command.replace(' ', '-')}")
    count = calls(campaign, command, "write")
    for _ in range(2):
        campaign.inject(command, folder, number.name, kinds=["write"], first=draw.randint(1, count), signal=int(number))
    campaign.complete(command, folder)


def test_twelve_kills_of_a_whole_run(campaign: Campaign) -> None:
    draw = random.Random(12)
    folder = campaign.folder("twelve")
    kinds = ["open", "write", "rename"]
    killed = 0
    while killed < 12:
        # Early in what is left, so that the run is not finished before the last one.
        first = draw.randint(1, 60)
        result = campaign.inject("run", folder, "SIGKILL", kinds=kinds, first=first, signal=int(signal.SIGKILL))
        killed += result.code == -signal.SIGKILL
        assert result.code == -signal.SIGKILL or killed
        if result.code == 0:
            break
    assert killed == 12
    campaign.complete("run", folder)


@pytest.mark.parametrize("command", WRITING)
def test_disks_without_locks(campaign: Campaign, command: str) -> None:
    folder = campaign.folder(f"locks-{command.replace(' ', '-')}")
    result = campaign.inject(command, folder, "ENOLCK", kinds=["lock"], first=1, errno=errno.ENOLCK)
    assert result.code == 0, result
    assert "another process" not in result.err
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", WRITING)
def test_a_clock_that_jumps_back(campaign: Campaign, command: str) -> None:
    folder = campaign.folder(f"clock-{command.replace(' ', '-')}")
    result = campaign.inject(command, folder, "clock", kinds=["write"], first=2, jump=86_400)
    assert result.code == 0, result
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", WRITING)
def test_two_at_once(campaign: Campaign, command: str) -> None:
    folder = campaign.folder(f"two-{command.replace(' ', '-')}")
    INJECTED[command, "two at once"] += 1
    results = campaign.server.together([(folder, campaign.commands[command], {}) for _ in range(2)])
    assert sorted(result.code for result in results) in ([0, 0], [0, 2]), results
    for result in results:
        assert "Traceback" not in result.err, result
        assert result.code == 0 or "another process" in result.err, result
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", ["run", "masks build", "extract", "eval", "search"])
def test_no_home_and_no_temporary_folder(campaign: Campaign, command: str) -> None:
    folder = campaign.folder(f"home-{command.replace(' ', '-')}")
    environment = {"HOME": "/proc/nowhere", "TMPDIR": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    result = campaign.inject(command, folder, "no home", env=environment)
    assert result.code == 0, result
    assert os.fspath("/proc/nowhere") not in result.err
    campaign.complete(command, folder)

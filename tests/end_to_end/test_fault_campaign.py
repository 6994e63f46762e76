"""The fault campaign: every command and stage under failing disks, vanishing inputs, signals, clocks and rivals.

After each fault: no traceback, no file under a final name that is not complete, and the same command, repeated,
ends with the results of an undisturbed run.
"""

from __future__ import annotations

import errno
import json
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.runtime.files import is_temporary
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
figures = 1
"""

WRITES = ("open", "write", "rename")
WRITING = ("data synth", "masks build", "run", "extract", "eval")
INJECTED: Counter[tuple[str, str]] = Counter()
"""Faults by command and kind, for the record."""


@dataclass
class Campaign:
    """The server, and for each command what an undisturbed run leaves and how many calls of `WRITES` it needs."""

    server: FaultServer
    root: Path
    commands: Mapping[str, tuple[str, ...]]
    reference: Mapping[str, Any]
    calls: Mapping[str, int]

    def folder(self, name: str) -> Path:
        """Return a new working folder."""
        folder = self.root / name.replace(" ", "-")
        folder.mkdir()
        (folder / "sgsfa.toml").write_text(SETTINGS)
        return folder

    def inject(self, command: str, folder: Path, kind: str, /, **fault: Any) -> Result:
        """Run a command under a fault and check that it ends as it should."""
        INJECTED[command, kind] += 1
        result = self.server.run(folder, *self.commands[command], **{"folder": str(folder), **fault})
        signals = (-fault["signal"],) if "signal" in fault else ()
        assert result.code in (0, 2, 3, *signals), result
        assert "Traceback" not in result.err, result
        assert "internal error" not in result.err, result
        check_final_names(folder)
        return result

    def complete(self, command: str, folder: Path) -> None:
        """Repeat the command without a fault; its results are those of the undisturbed run."""
        result = self.server.run(folder, *self.commands[command])
        assert result.code == 0, result
        self.check_results(command, folder)

    def check_results(self, command: str, folder: Path) -> None:
        """Compare what a command has written with the undisturbed run."""
        found, expected = contents(folder), self.reference[command]
        assert found.keys() == expected.keys()
        assert [name for name, content in found.items() if content != expected[name]] == []
        assert [path for path in folder.rglob("*") if path.name.endswith((".partial", ".lock"))] == []


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
        if not is_temporary(path):
            json.loads(path.read_text())


def contents(folder: Path) -> dict[str, Any]:
    """Return what results consist of, by path: images, arrays, weights and metrics; no times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_temporary(path):
            continue  # of a writer that was killed; hidden, and never read
        if path.suffix in (".jpg", ".png", ".safetensors"):
            found[name] = path.read_bytes() if path.suffix != ".png" or "labels" in name else None
        elif path.suffix == ".h5":
            with h5py.File(path, "r", locking=False) as file:
                found[name] = {key: np.asarray(file[key]).tobytes() for key in file}
        elif path.name == "result.json":
            found[name] = None
    return found


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    root = tmp_path_factory.mktemp("campaign")
    (root / "output").mkdir()
    (root / "sgsfa.toml").write_text(SETTINGS)
    with fault_server(root / "output") as server:
        sizes = ("--ids", "4", "--cameras", "2", "--shots", "2", "--size", "64x32", "--jobs", "1")
        people = ("--data", "synthetic:people")
        _succeed(server, root, "data", "synth", "people", *sizes)
        _succeed(server, root, "train", *people, "--set", "train.epochs=1")
        (checkpoint,) = root.glob("artifacts/train/*/model.safetensors")
        _succeed(server, root, "extract", *people, "--checkpoint", str(checkpoint), "--out", "f.h5")
        query = min((root / "people" / "query").glob("*.jpg"))
        people = ("--data", "synthetic:../people")
        commands = {
            "data synth": ("data", "synth", "out", *sizes),
            "data check": ("data", "check", people[1]),
            "masks build": ("masks", "build", people[1], "--parser", "label-maps", "--out", "m.h5"),
            "run": ("run",),
            "train": ("train", *people),
            "extract": ("extract", *people, "--checkpoint", str(checkpoint), "--out", "f.h5"),
            "eval": ("eval", "--features", "../f.h5", *people, "--out", "results"),
            "search": ("search", str(query), "--gallery", "../f.h5", "--checkpoint", str(checkpoint)),
        }
        reference: dict[str, Any] = {}
        calls: dict[str, int] = {}
        campaign = Campaign(server, root, commands, reference, calls)
        for name in commands:
            folder = campaign.folder(f"reference-{name}")
            result = _succeed(server, folder, *commands[name], folder=str(folder), kinds=WRITES)
            reference[name], calls[name] = contents(folder), result.count or 1
        yield campaign
    for command in commands:
        kinds = {kind: count for (other, kind), count in INJECTED.items() if other == command}
        print(f"\n{command}: {sum(kinds.values())} faults injected {kinds}", end="")


def _succeed(server: FaultServer, cwd: Path, /, *args: str, **fault: Any) -> Result:
    result = server.run(cwd, *args, **fault)
    assert result.code == 0, result
    return result


@pytest.mark.parametrize("command", [*WRITING, "train"])
def test_fault_campaign__failing_disks(campaign: Campaign, command: str) -> None:
    draw = random.Random(command)
    folder = campaign.folder(f"disk-{command}")
    count = campaign.calls[command]
    for number in (errno.ENOSPC, errno.EIO, errno.EACCES):
        # The last call as well: it comes when everything but the name is there. What was resumed needs fewer.
        for first in (draw.randint(1, count), count):
            campaign.inject(command, folder, errno.errorcode[number], kinds=WRITES, first=first, errno=number)
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", ["data check", "masks build", "run", "extract", "eval", "search"])
def test_fault_campaign__inputs_that_fail_or_vanish(campaign: Campaign, command: str) -> None:
    draw = random.Random(command)
    folder = campaign.folder(f"input-{command}")
    people = campaign.root / "people"
    reads = {"folder": str(campaign.root), "kinds": ["read"]}
    for number in (errno.EIO, errno.EACCES):
        label = f"{errno.errorcode[number]} on read"
        campaign.inject(command, folder, label, **reads, first=draw.randint(1, 40), errno=number)
    for _ in range(2):
        campaign.inject(command, folder, "vanishing input", **reads, first=draw.randint(1, 40), vanish=str(people))
        away = people.with_name("people.away")
        if away.exists():
            away.rename(people)
    campaign.complete(command, folder)


@pytest.mark.parametrize("command", WRITING)
def test_fault_campaign__signals_at_random_moments(campaign: Campaign, command: str) -> None:
    draw = random.Random(command)
    folder = campaign.folder(f"signals-{command}")
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        first = draw.randint(1, campaign.calls[command])
        campaign.inject(command, folder, number.name, kinds=WRITES, first=first, signal=int(number))
    campaign.complete(command, folder)


def test_fault_campaign__twelve_kills_of_a_whole_run(campaign: Campaign) -> None:
    draw = random.Random(12)
    folder = campaign.folder("twelve")
    for _ in range(12):
        # Each session gets a twelfth further on average, so that the last one still finds work.
        first = draw.randint(1, max(2, campaign.calls["run"] // 8))
        result = campaign.inject("run", folder, "SIGKILL", kinds=WRITES, first=first, signal=int(signal.SIGKILL))
        assert result.code == -signal.SIGKILL, result
    campaign.complete("run", folder)


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("ENOLCK", {"kinds": ["lock"], "first": 1, "errno": errno.ENOLCK}),
        ("clock back", {"kinds": ["write"], "first": 2, "jump": 86_400}),
        ("no home", {"env": dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/proc/nowhere")}),
    ],
)
def test_fault_campaign__surroundings(campaign: Campaign, command: str, kind: str, fault: dict[str, Any]) -> None:
    folder = campaign.folder(f"{kind}-{command}")
    result = campaign.inject(command, folder, kind, **fault)
    assert result.code == 0, result
    assert "another process" not in result.err, result
    assert "/proc/nowhere" not in result.err, result
    campaign.check_results(command, folder)


@pytest.mark.parametrize("command", WRITING)
def test_fault_campaign__two_at_once(campaign: Campaign, command: str) -> None:
    folder = campaign.folder(f"two-{command}")
    INJECTED[command, "two at once"] += 1
    results = campaign.server.together([(folder, campaign.commands[command], {}) for _ in range(2)])
    assert sorted(result.code for result in results) in ([0, 0], [0, 2]), results
    for result in results:
        assert "Traceback" not in result.err, result
        assert result.code == 0 or "another process" in result.err, result
    campaign.check_results(command, folder)

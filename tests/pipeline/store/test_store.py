import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline.errors import ArtifactError, LockedError
from pipeline.formats.provenance import Provenance
from pipeline.runtime.files import atomic_write
from pipeline.store import workspace as workspace_module
from pipeline.store.artifact import artifact_folder
from pipeline.store.lock import owner
from pipeline.store.manifest import MANIFEST, read_manifest
from pipeline.store.store import ArtifactStore

RECORD = Provenance({"a": 1})
OTHER = Provenance({"a": 2})
PRINT = RECORD.fingerprint()
FOLDER = f"run-{PRINT[:8]}"


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def build(store, name="run", record=RECORD, files=("data.bin",), **options):
    with store.build("masks", name, record, **options) as work:
        if not work.published:
            for file in files:
                (work.path / file).parent.mkdir(parents=True, exist_ok=True)
                (work.path / file).write_text(f"content of {file}")
    return store.open("masks", name, record.fingerprint())


def left(store):
    """Everything under the root that is not a complete artifact."""
    return [path.name for path in store.root.glob("*/*") if not (path / MANIFEST).is_file()]


def test_a_missing_artifact_writes_nothing(store):
    artifact = store.open("masks", "run", PRINT)
    assert artifact.state == "missing"
    assert not store.root.exists()
    assert store.list() == []


def test_build__a_clean_exit_publishes_with_a_manifest(store):
    record = Provenance({"masks.flip": False, "images": PRINT})
    with store.build("masks", "run", record, built_from={"synth": "x"}) as work:
        work.extra["config"] = {"name": "run"}
        assert not work.resumed
        (work.path / "data.bin").write_bytes(b"12345")
        (work.path / "sub").mkdir()
        (work.path / "sub" / "b.txt").write_text("x")
        assert store.open("masks", "run", record.fingerprint()).state == "incomplete"
    artifact = store.open("masks", "run", record.fingerprint())
    assert artifact.state == "complete"
    assert artifact.path.name == f"run-{record.fingerprint()[:8]}"
    manifest = artifact.manifest
    assert manifest.provenance == record
    assert manifest.built_from == {"synth": "x"}
    assert manifest.extra == {"config": {"name": "run"}}
    assert manifest.fingerprint == record.fingerprint()
    assert json.loads((artifact.path / MANIFEST).read_text())["fingerprint"] == manifest.fingerprint
    assert set(manifest.files) == {"data.bin", "sub/b.txt"}
    assert manifest.files["data.bin"].size == 5
    assert manifest.sessions == 1
    assert {"python", "torch", "numpy", "sgsfa"} <= set(manifest.versions)
    assert left(store) == []
    assert store.verify(artifact) == ()
    assert store.at(artifact.path).manifest == manifest


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_the_partial_folder_and_the_next_session_resumes(store, kind):
    def broken():
        with store.build("masks", "run", RECORD) as work:
            (work.path / "half").write_text("1")
            raise kind

    with pytest.raises(kind):
        broken()
    assert store.open("masks", "run", PRINT).state == "incomplete"
    assert [path.name for path in store.root.glob("*/*")] == [f"{FOLDER}.partial"]
    with store.build("masks", "run", RECORD) as work:
        assert work.resumed
        assert (work.path / "half").read_text() == "1"
    artifact = store.open("masks", "run", PRINT)
    assert artifact.manifest.sessions == 2
    assert set(artifact.manifest.files) == {"half"}


def test_a_session_that_wrote_nothing_leaves_nothing(store):
    def broken():
        with store.build("masks", "run", RECORD):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert store.open("masks", "run", PRINT).state == "missing"
    assert left(store) == []


def test_temporary_files_of_killed_writers_are_swept(store):
    def broken():
        with store.build("masks", "run", RECORD) as work, atomic_write(work.path / "a.json") as path:
            path.write_text("half")
            shutil.copy(path, work.path / path.name.replace(str(os.getpid()), "1"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    artifact = build(store)
    assert set(artifact.manifest.files) == {"data.bin"}
    assert {path.name for path in artifact.path.iterdir()} == {"data.bin", MANIFEST}


def test_another_fingerprint_leaves_the_old_artifact_alone(store):
    first = build(store)
    second = build(store, record=OTHER)
    assert first.path != second.path
    assert store.verify(first) == ()
    assert [artifact.path for artifact in store.list()] == [first.path, second.path]


def test_a_run_of_another_name_finds_the_same_thing(store):
    first = build(store, name="first")
    assert store.open("masks", "second", PRINT).path == first.path
    assert store.open("masks", "second", OTHER.fingerprint()).state == "missing"


def test_a_finished_artifact_is_not_built_again(store):
    first = build(store)
    with store.build("masks", "run", RECORD) as work:
        assert work.published
        assert work.path == first.path
    assert store.open("masks", "run", PRINT).manifest == first.manifest
    assert left(store) == []


def test_replace_builds_from_nothing_and_swaps_at_the_end(store):
    build(store, files=("old",))
    with store.build("masks", "run", RECORD, replace=True) as work:
        assert not work.resumed
        assert (store.open("masks", "run", PRINT).path / "old").is_file()
        (work.path / "new").write_text("2")
    artifact = store.open("masks", "run", PRINT)
    assert set(artifact.manifest.files) == {"new"}
    assert left(store) == []


def test_verify_names_every_fault(store):
    artifact = build(store, files=("gone", "short", "flipped", "kept"))
    (artifact.path / "gone").unlink()
    (artifact.path / "short").write_text("x")
    content = bytearray((artifact.path / "flipped").read_bytes())
    content[0] ^= 1
    (artifact.path / "flipped").write_bytes(content)
    (artifact.path / "foreign").write_text("x")
    faults = store.verify(artifact)
    assert len(faults) == 4
    for name in ("gone", "short", "flipped", "foreign"):
        assert any(fault.startswith(name) for fault in faults)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format_version": 99}', '{"format_version": 1, "files": {"a": 3}}']
)
def test_a_broken_manifest_is_told_not_guessed_at(store, text):
    artifact = build(store)
    (artifact.path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(artifact.path)
    assert caught.value.where == str(artifact.path / MANIFEST)
    assert store.open("masks", "run", PRINT).state == "broken"
    broken = store.at(artifact.path)
    assert [found.state for found in store.list()] == ["broken"]
    assert store.verify(broken) == (caught.value.message,)
    newer = "99" in text
    assert [removal.path for removal in store.prunable([artifact.path])] == ([] if newer else [artifact.path])


def test_a_folder_without_its_manifest_is_broken(store):
    artifact = build(store)
    (artifact.path / MANIFEST).unlink()
    assert [found.state for found in store.list()] == ["broken"]
    assert "cannot read" in store.prunable([])[0].reason
    assert build(store, replace=True).state == "complete"
    assert left(store) == []


def interrupt(store, record=RECORD, **options):
    def session():
        with store.build("masks", "run", record, **options) as work:
            (work.path / "half").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session()


def resumes(store, **options):
    """Whether a session resumes what `interrupt` left."""
    with store.build("masks", "run", RECORD, **options) as work:
        assert work.resumed == (work.path / "half").exists()
    return work.resumed


def test_build__inputs_that_were_rebuilt_discard_what_was_begun_from_the_old_ones(store):
    interrupt(store, built_from={"synth": "monday"})
    assert not resumes(store, built_from={"synth": "tuesday"})
    assert build(store, built_from={"synth": "tuesday"}).manifest.built_from == {"synth": "tuesday"}
    with store.build("masks", "run", RECORD, built_from={"synth": "tuesday"}) as work:
        assert work.published
    # A complete artifact from other inputs is replaced.
    interrupt(store, built_from={"synth": "monday"})
    assert resumes(store, built_from={"synth": "monday"})
    assert store.open("masks", "run", PRINT).manifest.built_from == {"synth": "monday"}
    assert left(store) == []


def test_build__the_first_digits_of_a_fingerprint_are_not_enough_to_resume(store):
    other = artifact_folder(store.root, "masks", "run", OTHER.fingerprint())
    interrupt(store)
    store.open("masks", "run", PRINT).partial.rename(other.with_name(other.name + ".partial"))
    with store.build("masks", "run", OTHER) as work:
        assert not work.resumed


@pytest.mark.parametrize("moment", ["describe_files", "versions"])
@pytest.mark.parametrize("replace", [False, True])
def test_build__a_session_killed_while_it_publishes_is_resumed(store, monkeypatch, moment, replace):
    if replace:
        build(store, files=("old",))
    with monkeypatch.context() as patch:
        patch.setattr(workspace_module, moment, lambda *_, **__: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(store, files=("half",), replace=replace)
    assert resumes(store, replace=replace)
    assert set(store.open("masks", "run", PRINT).manifest.files) == {"half"}
    assert left(store) == []


def test_build__a_session_killed_between_manifest_and_rename_is_resumed(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(store, files=("half",))
    assert (store.open("masks", "run", PRINT).partial / MANIFEST).is_file()
    assert resumes(store)
    assert store.verify(store.open("masks", "run", PRINT)) == ()


def test_build__an_interrupted_replacement_leaves_the_old_artifact_in_use(store):
    build(store, files=("old",))
    interrupt(store, replace=True)
    assert store.open("masks", "run", PRINT).state == "complete"
    assert [found.state for found in store.list()] == ["complete"]
    with store.build("masks", "run", RECORD) as work:
        assert work.published
    assert resumes(store, replace=True)
    assert set(store.open("masks", "run", PRINT).manifest.files) == {"half"}
    assert left(store) == []


def test_build__replacing_what_is_not_complete_starts_from_scratch(store):
    interrupt(store)
    assert not resumes(store, replace=True)


def test_workspace__discarded_work_is_not_resumed(store):
    def session():
        with store.build("masks", "run", RECORD) as work:
            (work.path / "half").write_text("1")
            work.discard()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        session()
    assert store.open("masks", "run", PRINT).state == "missing"
    assert left(store) == []


def _raise(error):
    raise error


# Pruning


def test_prune_lists_unused_artifacts_and_leftovers_and_spares_the_rest(store):
    kept = build(store)
    old = build(store, record=OTHER)
    foreign = build(store, name="other", record=Provenance({"a": 3}))
    dead = store.root / "masks" / "run-44444444.partial"
    dead.mkdir()
    (dead / "half").write_text("12345")
    lock = store.root / "train" / "run-12345678.lock"
    lock.parent.mkdir()
    lock.write_text("")
    discarded = store.root / "train" / "run-12345678.discarded-0123abcd"
    discarded.mkdir()
    written, half = (store.root / "train" / f".images.{pid}-0123abcd.json" for pid in (1, 2))
    for path in (written, half):
        path.write_text("")
    os.utime(half, (0, 0))

    removals = store.prunable([kept.path], names=["run"])
    assert {removal.path for removal in removals} == {old.path, dead, lock, discarded, half}
    assert next(removal.size for removal in removals if removal.path == dead) == 5
    everything = store.prunable([kept.path])
    assert foreign.path in {removal.path for removal in everything}

    store.remove(removals)
    assert {artifact.path for artifact in store.list()} == {kept.path, foreign.path}
    assert left(store) == [written.name]


def test_prune_keeps_the_partial_folder_of_a_plan(store):
    path = store.root / "masks" / FOLDER
    path.with_name(path.name + ".partial").mkdir(parents=True)
    assert store.prunable([path]) == ()


def test_prune_spares_what_is_being_built(store):
    with store.build("masks", "run", RECORD):
        assert store.prunable([]) == ()


def test_what_is_built_again_meanwhile_is_not_removed(store):
    old = build(store)
    other = build(store, record=OTHER)
    removals = store.prunable([])
    process = worker(store, 0.05, "--replace")
    try:
        assert wait_for(process) == "building"
        assert [left.path for left in store.remove(removals)] == [old.path]
    finally:
        process.kill()
        process.communicate()
    assert old.path.is_dir()
    assert not other.path.exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_lock_that_may_not_be_read_counts_as_held(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("{}")
    path.chmod(0)
    assert owner(path) is not None


# Places that cannot be written


def test_a_file_in_place_of_the_root(tmp_path):
    (tmp_path / "artifacts").write_text("I am a file")
    with pytest.raises(ArtifactError, match="written") as caught:
        build(ArtifactStore(tmp_path / "artifacts"))
    assert (caught.value.where or "").startswith(str(tmp_path / "artifacts"))


def test_a_root_without_permission(store, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        build(store)


def test_a_file_of_the_user_s_that_cannot_be_read_is_not_blamed_on_the_store(store, tmp_path):
    def body():
        with store.build("masks", "run", RECORD):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "theirs.jpg"))

    with pytest.raises(PermissionError):
        body()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Unable to flush: No space left on device"),
    ],
)
def test_a_full_disk_is_told_and_publishes_nothing(store, error):
    def body():
        with store.build("masks", "run", RECORD) as work:
            (work.path / "half").write_text("1")
            raise error

    with pytest.raises(ArtifactError, match="disk is full") as caught:
        body()
    assert caught.value.where == str(store.root)
    assert store.open("masks", "run", PRINT).state == "incomplete"


def test_a_disk_that_fills_while_publishing(store, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(workspace_module, "describe_files", lambda *_, **__: _raise(error))
    with pytest.raises(ArtifactError, match="disk is full"):
        build(store)
    monkeypatch.undo()
    assert build(store).state == "complete"


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_real_disk_that_fills_up(small_disk):
    store = ArtifactStore(small_disk / "artifacts")

    def fill():
        with store.build("masks", "run", RECORD) as work, (work.path / "big").open("wb") as stream:
            for _ in range(64):
                stream.write(bytes(1 << 16))
                stream.flush()

    with pytest.raises(ArtifactError, match="disk is full"):
        fill()
    assert store.open("masks", "run", PRINT).state == "incomplete"
    (store.open("masks", "run", PRINT).partial / "big").unlink()
    assert build(store).state == "complete"


# Several processes

WORKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from pipeline.formats.provenance import Provenance
    from pipeline.store.store import ArtifactStore
    from pipeline.runtime.files import atomic_write

    root, pause = Path(sys.argv[1]), float(sys.argv[2])
    options = {name: f"--{name}" in sys.argv for name in ("wait", "replace")}
    with ArtifactStore(root).build("masks", "run", Provenance({"a": 1}), **options) as work:
        print("published" if work.published else "building", flush=True)
        for number in range(0 if work.published else 40):
            path = work.path / f"{number:02d}.txt"
            if not path.exists():
                with atomic_write(path) as temporary:
                    temporary.write_text("half")
                    time.sleep(pause)
                    temporary.write_text(f"number {number}")
    """
)


def worker(store, pause, *extra):
    command = [sys.executable, "-c", WORKER, str(store.root), str(pause), *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process):
    """Read the line that says that the lock is taken."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_stops_with_a_message_that_names_the_first(store, monkeypatch):
    process = worker(store, 0.5)
    try:
        assert wait_for(process) == "building"
        assert f"process {process.pid} on" in store.open("masks", "run", PRINT).owner
        with pytest.raises(LockedError) as caught:
            build(store)
        assert str(process.pid) in (caught.value.expected or "")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        with pytest.raises(LockedError) as caught:
            build(store)
        assert "SLURM_NTASKS=2" in (caught.value.hint or "")
        assert store.prunable([]) == ()
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_that_waits_finds_the_work_done(store):
    process = worker(store, 0.02)
    assert wait_for(process) == "building"
    artifact = build(store, wait=True)
    assert process.wait(timeout=60) == 0
    process.communicate()
    assert len(artifact.manifest.files) == 40
    assert left(store) == []


def test_the_lock_of_a_dead_process_is_taken_over(store):
    process = worker(store, 0.5)
    assert wait_for(process) == "building"
    process.kill()
    process.communicate()
    assert any(name.endswith(".lock") for name in left(store))
    assert store.open("masks", "run", PRINT).owner is None
    begun = time.monotonic()
    assert build(store).state == "complete"
    assert time.monotonic() - begun < 5
    assert left(store) == []


def test_a_lock_file_with_any_content_is_no_lock(store):
    path = store.root / "masks" / f"{FOLDER}.lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "long ago"}))
    assert build(store).state == "complete"


def kill_and_resume(store, seed):
    draw = random.Random(seed)
    kills = 0
    while True:
        process = worker(store, 0.01)
        if kills < 4:
            if draw.random() < 0.7:
                wait_for(process)
            time.sleep(draw.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
    artifact = store.open("masks", "run", PRINT)
    assert artifact.state == "complete"
    assert store.verify(artifact) == ()
    assert sorted(artifact.manifest.files) == [f"{number:02d}.txt" for number in range(40)]
    for number in range(40):
        assert (artifact.path / f"{number:02d}.txt").read_text() == f"number {number}"
    build(store)  # the last kill may have come after the rename; the next session removes its lock
    assert left(store) == []


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing_and_leaves_no_leftovers(store, seed):
    kill_and_resume(store, seed)

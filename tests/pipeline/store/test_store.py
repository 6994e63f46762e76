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

from pipeline.errors import ArtifactError, LockedError, SgsfaError
from pipeline.runtime.files import atomic_write
from pipeline.store import store as store_module
from pipeline.store.fingerprint import fingerprint
from pipeline.store.lock import owner
from pipeline.store.manifest import MANIFEST, read_manifest
from pipeline.store.store import ArtifactStore

PRINT = fingerprint({"a": 1})
OTHER = fingerprint({"a": 2})
NOTHING = {"decisive": {}, "inputs": {}}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "artifacts")


def build(store, name="run", fingerprint=PRINT, files=("data.bin",), **options):
    with store.build("masks", name, fingerprint, manifest=NOTHING, **options) as work:
        if not work.published:
            for file in files:
                (work.path / file).parent.mkdir(parents=True, exist_ok=True)
                (work.path / file).write_text(f"content of {file}")
    return store.open("masks", name, fingerprint)


def left(store):
    """Everything under the root that is not a whole artifact."""
    return [path.name for path in store.root.glob("*/*") if not (path / MANIFEST).is_file()]


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))
    with pytest.raises(TypeError):
        fingerprint({1, 2})


def test_a_missing_artifact_writes_nothing(store):
    artifact = store.open("masks", "run", PRINT)
    assert artifact.state == "missing"
    assert not store.root.exists()
    assert store.list() == []


def test_a_clean_exit_publishes_with_a_manifest(store):
    manifest = {"decisive": {"masks.flip": False}, "inputs": {"images": OTHER}, "config": {"name": "run"}}
    with store.build("masks", "run", PRINT, manifest=manifest) as work:
        assert not work.resumed
        (work.path / "data.bin").write_bytes(b"12345")
        (work.path / "sub").mkdir()
        (work.path / "sub" / "b.txt").write_text("x")
        assert store.open("masks", "run", PRINT).state == "partial"
    artifact = store.open("masks", "run", PRINT)
    assert artifact.state == "fresh"
    assert artifact.path.name == f"run-{PRINT[:8]}"
    told = artifact.manifest
    assert told.decisive == {"masks.flip": False}
    assert told.inputs == {"images": OTHER}
    assert told.extra == {"config": {"name": "run"}}
    assert told.fingerprint == PRINT
    assert set(told.files) == {"data.bin", "sub/b.txt"}
    assert told.files["data.bin"].size == 5
    assert told.sessions == 1
    assert {"python", "torch", "numpy", "sgsfa"} <= set(told.versions)
    assert left(store) == []
    assert store.verify(artifact) == ()
    assert store.at(artifact.path).manifest == told


def test_what_the_body_adds_to_the_manifest_is_kept(store):
    manifest = {}
    with store.build("masks", "run", PRINT, manifest=manifest):
        manifest["figures"] = {"rate": 3.5}
    assert store.open("masks", "run", PRINT).manifest.extra["figures"] == {"rate": 3.5}


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_the_partial_folder_and_the_next_session_resumes(store, kind):
    def broken():
        with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
            (work.path / "half").write_text("1")
            raise kind

    with pytest.raises(kind):
        broken()
    assert store.open("masks", "run", PRINT).state == "partial"
    assert [path.name for path in store.root.glob("*/*")] == [f"run-{PRINT[:8]}.partial"]
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.resumed
        assert (work.path / "half").read_text() == "1"
    artifact = store.open("masks", "run", PRINT)
    assert artifact.manifest.sessions == 2
    assert set(artifact.manifest.files) == {"half"}


def test_a_session_that_wrote_nothing_leaves_nothing(store):
    def broken():
        with store.build("masks", "run", PRINT, manifest=NOTHING):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert store.open("masks", "run", PRINT).state == "missing"
    assert left(store) == []


def test_temporary_files_of_killed_writers_are_swept(store):
    def broken():
        with store.build("masks", "run", PRINT, manifest=NOTHING) as work, atomic_write(work.path / "a.json") as path:
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
    second = build(store, fingerprint=OTHER)
    assert first.path != second.path
    assert store.verify(first) == ()
    assert [artifact.path for artifact in store.list()] == [first.path, second.path]


def test_a_run_of_another_name_finds_the_same_thing(store):
    first = build(store, name="first")
    assert store.open("masks", "second", PRINT).path == first.path
    assert store.open("masks", "second", OTHER).state == "missing"


def test_a_finished_artifact_is_not_built_again(store):
    first = build(store)
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.published
        assert work.path == first.path
    assert store.open("masks", "run", PRINT).manifest == first.manifest
    assert left(store) == []


def test_replace_builds_from_nothing_and_swaps_at_the_end(store):
    build(store, files=("old",))
    with store.build("masks", "run", PRINT, manifest=NOTHING, replace=True) as work:
        assert not work.resumed
        assert (store.open("masks", "run", PRINT).path / "old").is_file()
        (work.path / "new").write_text("2")
    artifact = store.open("masks", "run", PRINT)
    assert set(artifact.manifest.files) == {"new"}
    assert left(store) == []


def test_a_session_killed_between_manifest_and_rename_is_published_by_the_next(store):
    artifact = build(store)
    artifact.path.rename(artifact.partial)
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.published
    assert store.open("masks", "run", PRINT).manifest == artifact.manifest


def test_a_session_killed_while_it_hashes_is_remembered(store, monkeypatch):
    older, newer = ({**NOTHING, "built_from": {"masks": stamp}} for stamp in ("monday", "tuesday"))

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    def session(manifest, **options):
        with store.build("train", "run", PRINT, manifest=manifest, **options) as work:
            if not work.published:
                (work.path / "data.bin").write_text(manifest["built_from"]["masks"])
        return work

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "describe_files", killed)
        with pytest.raises(KeyboardInterrupt):
            session(older)
    assert session(older).resumed
    # A forced rebuild stopped there stays one.
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "describe_files", killed)
        with pytest.raises(KeyboardInterrupt):
            session(older, replace=True)
    assert store.open("train", "run", PRINT).state == "partial"
    # What was made from Monday's masks is not published as made from Tuesday's.
    assert not session(newer).resumed
    artifact = store.open("train", "run", PRINT)
    assert artifact.manifest.built_from == {"masks": "tuesday"}
    assert (artifact.path / "data.bin").read_text() == "tuesday"
    assert left(store) == []
    assert store.verify(artifact) == ()


def test_a_session_killed_between_manifest_and_its_own_note_is_published_by_the_next(store):
    artifact = build(store)
    artifact.path.rename(artifact.partial)
    store_module._begin_session(artifact.partial, replaces=True, built_from={})
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.published
    assert store.verify(store.open("masks", "run", PRINT)) == ()
    assert left(store) == []


def test_a_partial_folder_whose_manifest_does_not_fit_is_resumed(store):
    artifact = build(store)
    (artifact.path / "data.bin").write_text("changed")
    artifact.path.rename(artifact.partial)
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.resumed
        assert not work.published
    assert store.verify(store.open("masks", "run", PRINT)) == ()


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
    assert "cannot be read" in store.prunable([])[0].reason
    assert build(store, replace=True).state == "fresh"
    assert left(store) == []


def test_an_interrupted_replacement_is_gone_on_with(store):
    build(store, files=("old",))

    def interrupted(**options):
        with store.build("masks", "run", PRINT, manifest=NOTHING, **options) as work:
            assert not work.published
            (work.path / "new").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(replace=True)
    assert store.open("masks", "run", PRINT).state == "partial"
    assert {found.state for found in store.list()} == {"fresh", "partial"}
    assert store.prunable([store.open("masks", "run", PRINT).path]) == ()
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert work.resumed
    assert set(store.open("masks", "run", PRINT).manifest.files) == {"new"}
    assert left(store) == []


def test_a_replacement_killed_before_its_rename_is_published_by_the_next(store):
    first = build(store, files=("old",))
    shutil.copytree(first.path, first.partial)
    assert store.open("masks", "run", PRINT).state == "partial"
    assert build(store).state == "fresh"
    assert left(store) == []


def test_what_was_begun_or_made_from_another_artifact_is_not_gone_on_with(store):
    older, newer = ({**NOTHING, "built_from": {"masks": stamp}} for stamp in ("monday", "tuesday"))

    def interrupted(manifest):
        with store.build("train", "run", PRINT, manifest=manifest) as work:
            (work.path / "half").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(older)
    for manifest, again in ((newer, False), (newer, True), (older, False)):
        with store.build("train", "run", PRINT, manifest=manifest) as work:
            assert work.published == again
            assert not (work.path / "half").exists()
    assert store.open("train", "run", PRINT).manifest.built_from == {"masks": "monday"}


def test_spoiled_work_is_begun_anew(store):
    def spoiled():
        with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
            (work.path / "half").write_text("1")
            store.spoil(work)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        spoiled()
    with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
        assert not work.resumed


# Pruning


def test_prune_lists_unused_artifacts_and_litter_and_spares_the_rest(store):
    kept = build(store)
    old = build(store, fingerprint=OTHER)
    foreign = build(store, name="other", fingerprint=fingerprint(3))
    dead = store.root / "masks" / f"run-{fingerprint(4)[:8]}.partial"
    dead.mkdir()
    (dead / "half").write_text("12345")
    lock = store.root / "train" / "run-12345678.lock"
    lock.parent.mkdir()
    lock.write_text("")
    discarded = store.root / "train" / "run-12345678.discarded-0123abcd"
    discarded.mkdir()

    removals = store.prunable([kept.path], names=["run"])
    assert {removal.path for removal in removals} == {old.path, dead, lock, discarded}
    assert next(removal.size for removal in removals if removal.path == dead) == 5
    everything = store.prunable([kept.path])
    assert foreign.path in {removal.path for removal in everything}

    store.remove(removals)
    assert {artifact.path for artifact in store.list()} == {kept.path, foreign.path}
    assert left(store) == []


def test_prune_keeps_the_partial_folder_of_a_plan(store):
    path = store.root / "masks" / f"run-{PRINT[:8]}"
    path.with_name(path.name + ".partial").mkdir(parents=True)
    assert store.prunable([path]) == ()


def test_prune_spares_what_is_being_built(store):
    with store.build("masks", "run", PRINT, manifest=NOTHING):
        assert store.prunable([]) == ()


def test_what_is_built_again_meanwhile_is_not_removed(store):
    old = build(store)
    other = build(store, fingerprint=OTHER)
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
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        build(ArtifactStore(tmp_path / "artifacts"))
    assert "--set artifacts=" in (caught.value.hint or "")


def test_a_root_without_permission(store, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        build(store)


def test_a_file_of_the_user_s_that_cannot_be_read_is_not_blamed_on_the_store(store, tmp_path):
    def body():
        with store.build("masks", "run", PRINT, manifest=NOTHING):
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
        with store.build("masks", "run", PRINT, manifest=NOTHING) as work:
            (work.path / "half").write_text("1")
            raise error

    with pytest.raises(ArtifactError, match="disk is full") as caught:
        body()
    assert "prune" in (caught.value.hint or "")
    assert store.open("masks", "run", PRINT).state == "partial"


def test_a_disk_that_fills_while_publishing(store, monkeypatch):
    def full(folder, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "describe_files", full)
    with pytest.raises(ArtifactError, match="disk is full"):
        build(store)
    monkeypatch.undo()
    assert build(store).state == "fresh"


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
        with store.build("masks", "run", PRINT, manifest=NOTHING) as work, (work.path / "big").open("wb") as stream:
            for _ in range(64):
                stream.write(bytes(1 << 16))
                stream.flush()

    with pytest.raises(ArtifactError, match="disk is full"):
        fill()
    assert store.open("masks", "run", PRINT).state == "partial"
    (store.open("masks", "run", PRINT).partial / "big").unlink()
    assert build(store).state == "fresh"


# Several processes

WORKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from pipeline.store.store import ArtifactStore
    from pipeline.runtime.files import atomic_write

    root, fingerprint, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    options = {name: f"--{name}" in sys.argv for name in ("wait", "replace")}
    with ArtifactStore(root).build("masks", "run", fingerprint, manifest={}, **options) as work:
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
    command = [sys.executable, "-c", WORKER, str(store.root), PRINT, str(pause), *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process):
    """Read the line that says that the lock is taken."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_stops_with_a_message_that_names_the_first(store):
    process = worker(store, 0.5)
    try:
        assert wait_for(process) == "building"
        assert store.open("masks", "run", PRINT).owner.pid == process.pid
        with pytest.raises(LockedError) as caught:
            build(store)
        assert str(process.pid) in (caught.value.expected or "")
        assert "--wait" in (caught.value.hint or "")
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
    assert build(store).state == "fresh"
    assert time.monotonic() - begun < 5
    assert left(store) == []


def test_a_lock_file_with_any_content_is_no_lock(store):
    path = store.root / "masks" / f"run-{PRINT[:8]}.lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "long ago"}))
    assert build(store).state == "fresh"


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
    assert artifact.state == "fresh"
    assert store.verify(artifact) == ()
    assert sorted(artifact.manifest.files) == [f"{number:02d}.txt" for number in range(40)]
    for number in range(40):
        assert (artifact.path / f"{number:02d}.txt").read_text() == f"number {number}"
    build(store)  # the last kill may have come after the rename; whoever comes next clears its lock away
    assert left(store) == []


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing_and_leaves_no_litter(store, seed):
    kill_and_resume(store, seed)


def test_locks_that_the_file_system_does_not_have(store, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SgsfaError, match="no file locks"):
        build(store)

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from pipeline.errors import ArtifactError, DataError, LockedError
from pipeline.store.lock import exclusive, owner
from pipeline.store.output import output

KIND = "mask file"


def test_output__publishes_what_the_body_wrote(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.h5"
    with output(path, KIND) as partial:
        partial.write_bytes(b"masks")
        assert not path.exists()
        assert owner(path.with_name("m.h5.lock")) is not None
    assert path.read_bytes() == b"masks"
    assert [entry.name for entry in path.parent.iterdir()] == ["m.h5"]


def test_output__an_interrupted_body_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with pytest.raises(KeyboardInterrupt), output(path, KIND) as partial:
        _write_and_raise(partial, KeyboardInterrupt())
    assert not path.exists()
    with output(path, KIND) as partial:
        assert partial.read_bytes() == b"ma"
        partial.write_bytes(b"masks")
    assert path.read_bytes() == b"masks"


def test_output__without_a_partial_file_leaves_the_output_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"complete")
    with output(path, KIND):
        pass
    assert path.read_bytes() == b"complete"


def test_output__a_second_process_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    holder = "import sys\nfrom pathlib import Path\nfrom pipeline.store.output import output\n"
    holder += "with output(Path(sys.argv[1]), 'mask file'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", holder, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError) as caught, output(path, KIND):
            pass
        assert str(process.pid) in (caught.value.expected or "")
        assert caught.value.where == str(path)
        process.kill()
    # The file that the killed process left does not block.
    assert (tmp_path / "m.h5.lock").exists()
    assert owner(tmp_path / "m.h5.lock") is None
    with output(path, KIND):
        pass
    assert not (tmp_path / "m.h5.lock").exists()


def test_exclusive__waits_if_asked(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    holder = "import sys, time\nfrom pathlib import Path\nfrom pipeline.store.lock import exclusive\n"
    holder += "p = Path(sys.argv[1])\nwith exclusive(p, p, 'x'):\n    print('held', flush=True)\n    time.sleep(1)\n"
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        with exclusive(lock, lock, "x", wait=True):
            assert time.monotonic() - begun > 0.5


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_output__a_disk_without_locks_is_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", _raise(number))
    with caplog.at_level(logging.WARNING, "sgsfa"), output(tmp_path / "m.h5", KIND) as partial:
        partial.write_bytes(b"masks")
    assert str(tmp_path) in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.h5"]


def test_output__another_error_of_a_lock_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", _raise(errno.EIO))
    with pytest.raises(ArtifactError, match=os.strerror(errno.EIO)) as caught, output(tmp_path / "m.h5", KIND):
        pass
    assert not isinstance(caught.value, LockedError)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_output__states_why_it_cannot_be_written(number: int, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with pytest.raises(ArtifactError, match=os.strerror(number)) as caught, output(path, KIND) as partial:
        raise OSError(number, os.strerror(number), str(partial))
    assert caught.value.where == f"{path}.partial"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), RuntimeError("x: No space left on device")]
)
def test_output__a_full_disk_is_stated_and_the_work_is_kept(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with pytest.raises(ArtifactError, match="disk is full"), output(path, KIND) as partial:
        _write_and_raise(partial, error)
    assert (tmp_path / "m.h5.partial").read_bytes() == b"ma"
    assert not path.exists()


def test_output__an_error_number_in_the_words_of_hdf5_is_recognised(tmp_path: Path) -> None:
    text = "Can't decrement id ref count (file write failed: errno = {}, error message = 'x', offset = 48200)"
    for number, words in ((errno.EIO, os.strerror(errno.EIO)), (errno.ENOSPC, "disk is full")):
        with pytest.raises(ArtifactError, match=words), output(tmp_path / "m.h5", KIND):
            raise RuntimeError(text.format(number))


def test_exclusive__an_error_of_the_release_does_not_fail_finished_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    with output(tmp_path / "m.h5", KIND) as partial:
        partial.write_bytes(b"masks")
        monkeypatch.setattr(fcntl, "flock", _raise(errno.ENOLCK))
    assert (tmp_path / "m.h5").read_bytes() == b"masks"


def test_output__errors_about_inputs_elsewhere_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), output(tmp_path / "out" / "m.h5", KIND):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / "input.jpg"))
    with pytest.raises(DataError), output(tmp_path / "out" / "m.h5", KIND):
        raise DataError("wrong")


def test_output__refuses_folders_and_impossible_places(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="folder"), output(tmp_path, KIND):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError) as caught, output(tmp_path / "file" / "m.h5", KIND):
        pass
    assert str(tmp_path / "file") in (caught.value.where or "")


def test_owner__of_an_unreadable_lock_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "a.lock"
    assert owner(lock) is None
    lock.write_text("process 7 on there, since now")
    monkeypatch.setattr(filelock.FileLock, "acquire", _raise(errno.EACCES))
    assert "process 7 on there" in str(owner(lock))
    lock.write_text("")
    assert "unknown" in str(owner(lock))


def _write_and_raise(partial: Path, error: BaseException) -> None:
    partial.write_bytes(b"ma")
    raise error


def _raise(number: int):  # type: ignore[no-untyped-def]
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail

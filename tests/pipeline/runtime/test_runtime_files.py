import errno
import hashlib
import json
import os
from types import SimpleNamespace

import pytest

from pipeline.runtime.files import atomic_write, is_no_space, read_json, reserve, sha256_bytes, sha256_file, write_json


def test_the_file_appears_on_a_clean_exit_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_keeps_the_order_of_keys_and_ends_with_a_newline(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": ["ü"]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": [\n    "ü"\n  ]\n}\n'
    assert list(read_json(path)) == ["b", "a"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text()) == 1


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "data"
    path.write_bytes(data[:size])
    assert sha256_file(path) == sha256_bytes(data[:size]) == hashlib.sha256(data[:size]).hexdigest()


def test_reserved_bytes_are_on_the_disk(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"kept")
    reserve(target, 100_000)
    status = target.stat()
    assert status.st_size == 100_000
    assert status.st_blocks * 512 >= 100_000
    assert target.read_bytes()[:5] == b"kept\0"
    reserve(target, 10)
    assert target.stat().st_size == 100_000


def test_more_than_there_is_cannot_be_reserved(tmp_path, no_file_beyond):
    no_file_beyond(1000)
    with pytest.raises(OSError, match="too large"):
        reserve(tmp_path / "a", 1001)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF])
def test_on_disks_that_cannot_reserve_the_free_space_is_compared(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.posix_fallocate", refuse)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    reserve(tmp_path / "a", 90_000)
    with pytest.raises(OSError, match="No space") as told:
        reserve(tmp_path / "a", 110_000)
    assert is_no_space(told.value)
    # A sparse file has its bytes in name only.
    os.truncate(tmp_path / "a", 110_000)
    with pytest.raises(OSError, match="No space"):
        reserve(tmp_path / "a", 110_000)


def test_a_folder_that_is_missing_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError) as told:
        reserve(tmp_path / "nowhere" / "a", 10)
    assert not is_no_space(told.value)

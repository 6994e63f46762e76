import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets import fingerprint
from pipeline.datasets.fingerprint import dataset_fingerprint, image_hashes
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError
from pipeline.runtime.files import sha256_bytes, sha256_file

NAMES = [f"sub/{number}.jpg" for number in range(20)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
        age(path, 60)
    return folder


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes between the creation of the files and each check; change times cannot be set back."""
    now = time.time_ns
    monkeypatch.setattr(fingerprint.time, "time_ns", lambda: now() + 60_000_000_000)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "images.json"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were really read."""
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(fingerprint, "sha256_file", counting)
    return read


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_hashes_are_those_of_the_content(root: Path) -> None:
    assert image_hashes(root, NAMES, cache=None) == {
        name: sha256_bytes(bytes([number]) * 100) for number, name in enumerate(NAMES)
    }


def test_the_second_time_nothing_is_read(root: Path, cache: Path, hashed: list[Path]) -> None:
    first = image_hashes(root, NAMES, cache=cache)
    assert len(hashed) == 20
    assert image_hashes(root, NAMES, cache=cache) == first
    assert len(hashed) == 20


def test_a_touched_but_equal_file_is_read_again_and_keeps_its_hash(root: Path, cache: Path, hashed: list[Path]) -> None:
    first = image_hashes(root, NAMES, cache=cache)
    age(root / NAMES[3], 30)
    hashed.clear()
    assert image_hashes(root, NAMES, cache=cache) == first
    assert hashed == [root / NAMES[3]]


def test_a_changed_file_changes_its_hash_even_with_size_and_time_kept(root: Path, cache: Path) -> None:
    first = image_hashes(root, NAMES, cache=cache)
    path = root / NAMES[3]
    stat = path.stat()
    # Longer than the grain of any file system's clock that tests run on.
    time.sleep(0.05)
    path.write_bytes(bytes([99]) * 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = image_hashes(root, NAMES, cache=cache)
    assert {name for name in NAMES if first[name] != second[name]} == {NAMES[3]}


def test_files_written_just_now_are_not_trusted_whatever_date_they_have(
    root: Path, cache: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_hashes(root, NAMES[1:], cache=cache)
    monkeypatch.undo()
    hashed.clear()
    monkeypatch.setattr(fingerprint, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    age(root / NAMES[0], 3600)
    for _ in range(2):
        image_hashes(root, NAMES, cache=cache)
    assert hashed == [root / NAMES[0]] * 2


def test_folders_that_have_gone_are_forgotten(root: Path, cache: Path, tmp_path: Path) -> None:
    image_hashes(root, NAMES, cache=cache)
    root.rename(tmp_path / "moved")
    image_hashes(tmp_path / "moved", NAMES, cache=cache)
    assert list(json.loads(cache.read_text())["roots"]) == [str(tmp_path / "moved")]


def test_two_roots_share_a_cache(root: Path, cache: Path, tmp_path: Path, hashed: list[Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"a")
    age(other / "a.jpg", 60)
    image_hashes(root, NAMES, cache=cache)
    image_hashes(other, ["a.jpg"], cache=cache)
    hashed.clear()
    image_hashes(root, NAMES, cache=cache)
    image_hashes(other, ["a.jpg"], cache=cache)
    assert not hashed


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 99, "roots": {}}', '{"format": 1, "roots": {"/": {"a": 1}}}']
)
def test_a_broken_cache_is_an_empty_one(content: str, root: Path, cache: Path, hashed: list[Path]) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    image_hashes(root, NAMES, cache=cache)
    assert len(hashed) == 20
    assert json.loads(cache.read_text())["format"] == 1


def test_a_cache_that_cannot_be_written_costs_only_time(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(image_hashes(root, NAMES, cache=tmp_path / "file" / "images.json")) == 20


def test_missing_images_are_named_and_counted(root: Path) -> None:
    (root / NAMES[1]).unlink()
    with pytest.raises(DataError, match=r"1 of 20 images cannot be read: sub/1.jpg \(No such file or directory\)"):
        image_hashes(root, NAMES, cache=None)


def _many_times(root: Path, names: list[str], cache: Path) -> None:
    fingerprint._SETTLED_NS = -60_000_000_000  # a process of its own, in which `later` is not at work
    for _ in range(10):
        image_hashes(root, names, cache=cache)


def test_two_processes_may_use_one_cache(root: Path, cache: Path) -> None:
    expected = image_hashes(root, NAMES, cache=None)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_many_times, args=(root, NAMES[part::2], cache)) for part in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads(cache.read_text())["roots"].keys() == {str(root)}
    assert image_hashes(root, NAMES, cache=cache) == expected
    assert list(cache.parent.iterdir()) == [cache]


def test_the_fingerprint_covers_records_and_content_but_not_the_place(root: Path, tmp_path: Path) -> None:
    records = tuple(Record(name, number, 1, "train") for number, name in enumerate(NAMES))
    dataset = Dataset("csv", "people", root, records)
    first = dataset_fingerprint(dataset, records, None)
    for changed in (
        records[:-1],
        records[::-1],
        (*records[:-1], replace(records[-1], pid=99)),
        (*records[:-1], replace(records[-1], camid=2)),
        (*records[:-1], replace(records[-1], split="query")),
    ):
        assert dataset_fingerprint(dataset, changed, None) != first
    moved = replace(dataset, root=root.rename(tmp_path / "moved"))
    assert dataset_fingerprint(moved, records, None) == first
    (moved.root / NAMES[0]).write_bytes(b"other")
    assert dataset_fingerprint(moved, records, None) != first


class Counting:
    """A progress that counts, and is stopped by Ctrl-C at some number."""

    def __init__(self, stop: int | None = None, stopped: threading.Event | None = None) -> None:
        self.totals: list[int | None] = []
        self.done, self.stop, self.stopped = 0, stop, stopped or threading.Event()
        self.note = self.warn = lambda message: None

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> "Counting":
        self.totals.append(total)
        return self

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        self.done += count
        if self.done == self.stop:
            self.stopped.set()
            raise KeyboardInterrupt

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_the_hashing_of_many_images_is_shown(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many, again = Counting(), Counting(), Counting()
    image_hashes(root, NAMES, cache=None, progress=few)
    monkeypatch.setattr(fingerprint, "_MANY", 1)
    image_hashes(root, NAMES, cache=cache, progress=many)
    image_hashes(root, NAMES, cache=cache, progress=again)
    assert (few.totals, many.totals, again.totals) == ([], [20], [])
    assert many.done == 20


def test_a_stopped_hashing_keeps_what_it_has_and_reads_no_more(
    root: Path, cache: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_MANY", 1)
    monkeypatch.setattr(fingerprint, "_THREADS", 1)
    reading, stopped = fingerprint.sha256_file, threading.Event()

    def waiting_at_the_tenth(path: Path) -> str:
        if len(hashed) == 9:
            assert stopped.wait(60)
            time.sleep(0.2)  # until those that wait for their turn are called off
        return reading(path)

    monkeypatch.setattr(fingerprint, "sha256_file", waiting_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        image_hashes(root, NAMES, cache=cache, progress=Counting(stop=6, stopped=stopped))
    before = len(hashed)
    assert before < 20
    assert len(image_hashes(root, NAMES, cache=cache)) == 20
    assert len(hashed) == before + 20 - 5, "the five that were counted are remembered"

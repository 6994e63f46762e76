from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import ArtifactError, FormatError
from pipeline.formats import rows
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import (
    FAILED,
    OK,
    PENDING,
    Column,
    Layout,
    RowFormat,
    decode_texts,
    encode_texts,
    open_or_create,
    read_reasons,
    reading,
)

KIND = RowFormat("test-rows", 1, "row file", checksums=True)
RECORD = Provenance({"parser": "builtin", "flip": False, "device": "cpu"})


def layout(count: int = 5, names: tuple[str, ...] | None = None, kind: RowFormat = KIND) -> Layout:
    return Layout(
        kind,
        count,
        {"values": Column((2, 3), "f4"), "score": Column((), "u1")},
        {"names": encode_texts(names or tuple(f"{row}.jpg" for row in range(count)))},
        {"part_names": "head,upper"},
    )


def columns(start: int, count: int) -> dict[str, np.ndarray]:
    first = np.arange(start, start + count)
    return {"values": np.ones((count, 2, 3), "f4") * first[:, None, None], "score": first.astype("u1")}


def fill(path: Path, start: int, count: int, *, record: Provenance = RECORD) -> None:
    with open_or_create(path, layout(), record) as writer:
        writer.write(start, columns(start, count), np.full(count, OK, "u1"))


def content(path: Path) -> dict[str, np.ndarray]:
    with reading(path, KIND) as file:
        return {name: file[name][...] for name in ("values", "score", "status", "reason")}


def test_open_or_create__new_file_has_only_pending_rows(tmp_path: Path) -> None:
    with open_or_create(tmp_path / "a.h5", layout(), RECORD) as writer:
        assert np.flatnonzero(writer.status == PENDING).tolist() == [0, 1, 2, 3, 4]
    assert content(tmp_path / "a.h5")["status"].tolist() == [PENDING] * 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5"]


def test_open_or_create__resumes_with_the_pending_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path, 1, 2)
    with open_or_create(path, layout(), RECORD) as writer:
        assert np.flatnonzero(writer.status == PENDING).tolist() == [0, 3, 4]
        for row in np.flatnonzero(writer.status == PENDING).tolist():
            writer.write(row, columns(row, 1), np.array([OK], "u1"))
        writer.finish()
    with open_or_create(tmp_path / "b.h5", layout(), RECORD) as writer:
        writer.write(0, columns(0, 5), np.full(5, OK, "u1"))
    assert path.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_write__failed_rows_keep_their_reason_until_they_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with open_or_create(path, layout(), RECORD) as writer:
        writer.write(2, columns(2, 2), np.array([OK, FAILED], "u1"), {3: "the file is empty " + "é" * 100})
        assert writer.reasons()[3].startswith("the file is empty é")
    with reading(path, KIND) as file:
        [(row, reason)] = read_reasons(file, file["status"][...]).items()
    assert row == 3
    assert len(reason.encode()) in (rows.REASON_BYTES - 1, rows.REASON_BYTES)
    with open_or_create(path, layout(), RECORD) as writer:
        writer.status[3] = PENDING
        assert np.flatnonzero(writer.status == PENDING).tolist() == [0, 1, 3, 4]
        writer.write(3, columns(3, 1), np.array([OK], "u1"))
        assert writer.reasons() == {}
    assert content(path)["reason"].tolist() == [b""] * 5


def test_open_or_create__row_with_a_wrong_checksum_is_pending_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path, 0, 5)
    with h5py.File(path, "r+") as file:
        file["values"][2, 0, 0] = 77
    with open_or_create(path, layout(), RECORD) as writer:
        assert np.flatnonzero(writer.status == PENDING).tolist() == [2]


def test_open_or_create__another_record_is_refused_by_key(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", 0, 1)
    other = Provenance({**RECORD.values, "flip": True})
    with pytest.raises(FormatError) as caught:
        open_or_create(tmp_path / "a.h5", layout(), other)
    assert "flip" in caught.value.message
    assert caught.value.where == str(tmp_path / "a.h5")


def test_open_or_create__incidental_keys_may_differ_and_stay_as_recorded(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", 0, 1)
    other = Provenance({**RECORD.values, "device": "cuda:0"})
    with open_or_create(tmp_path / "a.h5", layout(), other, incidental=lambda each: each.key == "device") as writer:
        assert writer.provenance.values["device"] == "cpu"


def test_open_or_create__another_image_list_is_refused_with_both_numbers(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", 0, 1)
    other = layout(names=("0.jpg", "1.jpg", "2.jpg", "x.jpg", "y.jpg"))
    with pytest.raises(FormatError) as caught:
        open_or_create(tmp_path / "a.h5", other, RECORD)
    assert "2 missing, 2 unexpected" in caught.value.message
    assert "'x.jpg'" in caught.value.message


def test_open_or_create__takes_over_the_rows_of_a_published_file(tmp_path: Path) -> None:
    published, path = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    fill(published, 0, 4)
    with open_or_create(path, layout(), RECORD, published=published) as writer:
        assert np.flatnonzero(writer.status == PENDING).tolist() == [4]
    with pytest.raises(FormatError) as caught:
        open_or_create(tmp_path / "b.h5", layout(), Provenance({}), published=published)
    assert caught.value.where == str(published)
    assert not (tmp_path / "b.h5").exists()


def test_open_or_create__file_without_good_rows_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with open_or_create(path, layout(), RECORD) as writer:
        writer.write(0, columns(0, 5), np.full(5, FAILED, "u1"), {0: "no such file"})
    other = Provenance({"parser": "schp"})
    with open_or_create(path, layout(3), other) as writer:
        assert writer.provenance == other
        assert len(np.flatnonzero(writer.status == PENDING)) == 3


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "attribute", "names"])
def test_open_or_create__damaged_file_is_an_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.h5"
    fill(path, 0, 5)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("<!DOCTYPE html>")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:900])
    else:
        with h5py.File(path, "r+") as file:
            if damage == "attribute":
                file.attrs["part_names"] = "upper,head"
            else:
                file["names"][0] = b"9.jpg"
    with pytest.raises(FormatError) as caught:
        open_or_create(path, layout(), RECORD)
    assert caught.value.where == str(path)


def test_reading__file_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", 0, 5)
    for kind in (RowFormat("others", 1, "row file"), RowFormat("test-rows", 2, "row file")):
        with pytest.raises(FormatError), reading(tmp_path / "a.h5", kind):
            pass


def test_reading__needs_no_lock_of_the_disk(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", 0, 5)
    with open_or_create(tmp_path / "a.h5", layout(), RECORD), reading(tmp_path / "a.h5", KIND) as file:
        assert file["status"][...].tolist() == [OK] * 5


def test_create__full_disk_is_reported_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(rows, "reserve", full)
    with pytest.raises(ArtifactError, match="no space left"):
        open_or_create(tmp_path / "a.h5", layout(), RECORD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOLCK, errno.EACCES])
def test_translated__names_the_cause_the_system_gives(tmp_path: Path, number: int) -> None:
    with pytest.raises(ArtifactError) as caught, rows.translated(tmp_path / "a.h5", KIND, writing=True):
        raise OSError(f"Unable to synchronously open file (errno = {number}, error message = 'x')")
    assert os.strerror(number).lower() in caught.value.message


def test_write__wrong_shapes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with open_or_create(tmp_path / "a.h5", layout(), RECORD) as writer:
        with pytest.raises(ValueError, match="values"):
            writer.write(0, {"values": np.zeros((1, 2)), "score": np.zeros(1)}, np.array([OK], "u1"))
        with pytest.raises(ValueError, match="do not fit"):
            writer.write(4, columns(4, 2), np.full(2, OK, "u1"))
        with pytest.raises(ValueError, match="pending"):
            writer.finish()
        assert len(np.flatnonzero(writer.status == PENDING)) == 5


def test_texts__survive_encoding() -> None:
    texts = ["行人.jpg", "café.jpg", ""]
    assert decode_texts(encode_texts(texts)) == texts
    assert decode_texts(encode_texts(texts, 3)) == ["行", "caf", ""]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import Column, Layout, RowFormat, encode_texts, open_or_create

kind = RowFormat("test-rows", 1, "row file", checksums=True)
names = encode_texts([f"{row}.jpg" for row in range(400)])
layout = Layout(kind, 400, {"values": Column((64,), "f4")}, {"names": names})
with open_or_create(Path(sys.argv[1]), layout, Provenance({"a": 1})) as writer:
    for row in np.flatnonzero(writer.status == 0).tolist():
        writer.write(row, {"values": np.full((1, 64), row, "f4")}, np.array([1], "u1"))
        print(row, flush=True)
"""


def run_writer(path: Path, kill_after: int | None = None) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, _ in enumerate(process.stdout, start=1):
            if count == kill_after:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
        assert process.wait() == (-signal.SIGKILL if kill_after else 0)


def test_write__rows_survive_sigkill(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    written = 0
    for kill_after in (1, 37, 90):
        run_writer(killed, kill_after)
        with reading(killed, KIND) as file:
            done = int((file["status"][...] == OK).sum())
            values = file["values"][...]
        assert done >= written + kill_after
        assert (values[:done] == np.arange(done)[:, None]).all()
        written = done
    run_writer(killed)
    run_writer(whole)
    assert killed.read_bytes() == whole.read_bytes()

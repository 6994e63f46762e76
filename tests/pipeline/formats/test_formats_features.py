"""The features file: what is written comes back; what is wrong is refused with its reason; a kill leaves it whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import ArtifactError, FormatError
from pipeline.formats.features import FeatureFile, FeatureHeader, FeatureWriter, require_comparable
from pipeline.parts import PARTS


def header(count: int = 10, part_dim: int = 6, global_dim: int = 4, **changes: Any) -> FeatureHeader:
    made = FeatureHeader(
        names=[f"gallery/é{i:03d}.jpg" for i in range(count)],
        pids=np.arange(count) % 3 - 1,
        camids=np.arange(count) % 2,
        splits=["query"] * (count // 3) + ["gallery"] * (count - count // 3),
        part_dim=part_dim,
        global_dim=global_dim,
        thresholds=np.linspace(0.05, 0.11, 7),
        attributes={"checkpoint_sha256": "a" * 64, "flip": False, "notes": ["one"]},
    )
    return replace(made, **changes)


def rows(start: int, stop: int, part_dim: int = 6, global_dim: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers that tell which row they belong to."""
    parts = np.arange(start, stop, dtype=np.float32)[:, None, None] + np.zeros((1, 7, part_dim), dtype=np.float32)
    global_feature = -np.arange(start, stop, dtype=np.float32)[:, None] + np.zeros((1, global_dim), dtype=np.float32)
    visibility = np.full((stop - start, 7), 0.08, dtype=np.float32)
    return parts, global_feature, visibility


def write(path: Path, made: FeatureHeader | None = None) -> Path:
    made = made or header()
    with FeatureWriter.begin(path, made) as writer:
        writer.append(*rows(0, len(made.names), made.part_dim, made.global_dim))
        writer.finish()
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    made = header()
    file = FeatureFile.open(write(tmp_path / "sub" / "f.h5", made))
    assert (file.total, file.done, file.part_dim, file.global_dim) == (10, 10, 6, 4)
    loaded = file.load()
    expected = rows(0, 10)
    for found, wanted in zip((loaded.parts, loaded.global_feature, loaded.visibility), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == np.float32
    assert loaded.names.tolist() == list(made.names)
    np.testing.assert_array_equal(loaded.pids, made.pids)
    np.testing.assert_array_equal(loaded.camids, made.camids)
    assert loaded.splits.tolist() == list(made.splits)
    assert loaded.attributes == made.attributes
    np.testing.assert_array_equal(
        loaded.visible, np.linspace(0.05, 0.11, 7).astype(np.float32)[None].repeat(10, 0) < 0.08
    )
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["f.h5"]


def test_rows_in_blocks_and_one_by_one(tmp_path: Path) -> None:
    file = FeatureFile.open(write(tmp_path / "f.h5"))
    blocks = list(file.blocks(4, start=1, stop=10))
    assert [(block.start, len(block)) for block in blocks] == [(1, 4), (5, 4), (9, 1)]
    assert np.concatenate([block.parts for block in blocks])[:, 0, 0].tolist() == list(range(1, 10))
    again = [block.parts[:, 0, 0].copy() for block in file.blocks(4, start=1, stop=10, reuse=True)]
    assert np.concatenate(again).tolist() == list(range(1, 10))
    assert file.at(np.array([0, 1, 4, 9])).global_feature[:, 0].tolist() == [0, -1, -4, -9]
    assert [column.tolist() for column in file.ids()] == [column.tolist() for column in file.roles()[:2]]
    for reader in (file, file.mapped()):
        assert reader.at(np.array([5, 2, 5])).parts[:, 3, 1].tolist() == [5, 2, 5]
    assert len(file.at(np.array([], dtype=np.int64))) == 0
    assert file.names(np.array([[3, 1], [3, 0]])).tolist() == [
        ["gallery/é003.jpg", "gallery/é001.jpg"],
        ["gallery/é003.jpg", "gallery/é000.jpg"],
    ]
    loaded = file.load()
    assert loaded.split("gallery").parts[:, 0, 0].tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert loaded.select(np.array([2, 5])).names.tolist() == ["gallery/é002.jpg", "gallery/é005.jpg"]


def test_a_file_laid_out_by_another_program_is_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        parts = file["parts"][:]
        del file["parts"]
        file.create_dataset("parts", data=parts.astype("f8"), chunks=(2, 7, 6), compression="gzip")
    opened = FeatureFile.open(path)
    for reader in (opened, opened.mapped()):
        assert reader.at(np.array([5, 2, 5])).parts[:, 3, 1].tolist() == [5, 2, 5]
    assert opened.rows(2, 4).parts.dtype == np.float32
    assert next(opened.blocks(3, reuse=True)).parts[:, 0, 0].tolist() == [0, 1, 2]


def test_a_file_that_another_process_writes_is_said_to_be(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5")
    script = f"import h5py, time; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(FormatError, match="another process is writing"):
                FeatureFile.open(path)
        finally:
            other.kill()


@pytest.mark.parametrize(("part_dim", "global_dim"), [(0, 4), (6, 0)])
def test_models_without_parts_or_without_whole(tmp_path: Path, part_dim: int, global_dim: int) -> None:
    file = FeatureFile.open(write(tmp_path / "f.h5", header(part_dim=part_dim, global_dim=global_dim)))
    loaded = file.load()
    assert file.at(np.array([4, 1])).parts.shape == (2, 7, part_dim)
    assert file.at(np.array([4, 1])).global_feature.shape == (2, global_dim)
    assert loaded.parts.shape == (10, 7, part_dim)
    assert loaded.global_feature.shape == (10, global_dim)


def test_a_file_rewritten_in_chunks_reads_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5")
    before = FeatureFile.open(path).load()
    with h5py.File(path, "r+") as file:
        for name in ("parts", "names"):
            kept = file[name][:]
            del file[name]
            texts = h5py.string_dtype() if name == "names" else None
            file.create_dataset(name, data=kept, chunks=True, compression="gzip", dtype=texts)
    opened = FeatureFile.open(path)
    np.testing.assert_array_equal(opened.load().parts, before.parts)
    assert opened.load().names.tolist() == before.names.tolist()
    np.testing.assert_array_equal(opened.at(np.array([7, 3])).parts, before.parts[[7, 3]])


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with FeatureWriter.begin(path, header()) as writer:
        writer.append(*rows(0, 4))
    with pytest.raises(FormatError, match="unfinished: 4 of 10"):
        FeatureFile.open(path)
    assert len(FeatureFile.open(path, allow_partial=True).load()) == 4
    with FeatureWriter.begin(path, header()) as writer:
        assert writer.done == 4
        writer.append(*rows(4, 10))
        writer.finish()
    np.testing.assert_array_equal(FeatureFile.open(path).load().parts, rows(0, 10)[0])
    assert path.read_bytes() == write(tmp_path / "other.h5").read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"names": [f"other{i}" for i in range(10)]}, "images"),
        ({"part_dim": 5}, "feature lengths"),
        ({"pids": np.zeros(10)}, "identities"),
        ({"camids": np.zeros(10)}, "cameras"),
        ({"splits": ["all"] * 10}, "splits"),
        ({"thresholds": np.zeros(7)}, "thresholds"),
        ({"attributes": {"checkpoint_sha256": "b"}}, "origin"),
    ],
)
def test_does_not_go_on_with_other_work(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = tmp_path / "f.h5"
    FeatureWriter.begin(path, header()).close()
    with pytest.raises(FormatError, match=named):
        FeatureWriter.begin(path, header(**changes))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with FeatureWriter.begin(tmp_path / "f.h5", header()) as writer:
        parts, global_feature, visibility = rows(0, 3)
        with pytest.raises(ValueError, match="parts is"):
            writer.append(parts[:, :, :2], global_feature, visibility)
        with pytest.raises(ValueError, match="visibility is"):
            writer.append(parts, global_feature, visibility[:2])
        with pytest.raises(ValueError, match="not finite"):
            writer.append(parts * np.nan, global_feature, visibility)
        with pytest.raises(ValueError, match="do not fit"):
            writer.append(*rows(0, 11))
        with pytest.raises(ValueError, match="0 of 10"):
            writer.finish()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"thresholds": [0.1] * 6}, "thresholds"),
        ({"splits": ["query"]}, "differ in length"),
        ({"splits": ["tset"] * 10}, "unknown splits"),
        ({"part_dim": 0, "global_dim": 0}, "no feature"),
    ],
)
def test_a_header_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FeatureWriter.begin(tmp_path / "f.h5", header(**changes))
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the system cannot reserve space, what is free is compared.
    monkeypatch.delattr("os.posix_fallocate")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ArtifactError, match=r"No space left[^$]*make room"):
        FeatureWriter.begin(tmp_path / "f.h5", header())


class TestRefused:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="does not exist"):
            FeatureFile.open(tmp_path / "f.h5")

    def test_cut_off(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.h5")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(FormatError, match="cannot be opened"):
            FeatureFile.open(path)

    def test_damaged_start(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.h5")
        data = bytearray(path.read_bytes())
        data[:64] = bytes(64)
        path.write_bytes(data)
        with pytest.raises(FormatError, match="cannot be opened"):
            FeatureFile.open(path)

    def test_not_hdf5(self, tmp_path: Path) -> None:
        (tmp_path / "f.h5").write_text("name,pid\n")
        with pytest.raises(FormatError, match="cannot be opened"):
            FeatureFile.open(tmp_path / "f.h5")

    @staticmethod
    def changed(path: Path, change: Any) -> Path:
        write(path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda f: f.attrs.__setitem__("format", "sgsfa-masks"), "not a features file"),
            (lambda f: f.attrs.__setitem__("format_version", 99), "format version 99"),
            (lambda f: f.attrs.__delitem__("format_version"), "no format version"),
            (lambda f: f.__delitem__("camids"), "lacks /camids"),
            (lambda f: f.attrs.__setitem__("part_names", list(reversed(PARTS))), "the parts are bottom"),
            (lambda f: f["done"].__setitem__((), 11), "11 rows"),
            (lambda f: f["thresholds"].__setitem__(0, np.nan), "thresholds"),
            (lambda f: f.attrs.__setitem__("attributes", "{"), "not JSON"),
        ],
    )
    def test_inconsistent(self, tmp_path: Path, change: Any, named: str) -> None:
        with pytest.raises(FormatError, match=named):
            FeatureFile.open(self.changed(tmp_path / "f.h5", change))

    @pytest.mark.parametrize("name", ["parts", "global_feature", "visibility", "pids", "names", "thresholds"])
    def test_other_shapes(self, tmp_path: Path, name: str) -> None:
        def change(file: h5py.File) -> None:
            kept = file[name][:5]
            del file[name]
            file[name] = kept

        with pytest.raises(FormatError, match="has shape"):
            FeatureFile.open(self.changed(tmp_path / "f.h5", change))

    def test_other_types(self, tmp_path: Path) -> None:
        def change(file: h5py.File) -> None:
            del file["pids"]
            file["pids"] = np.zeros(10, dtype=np.float32)

        with pytest.raises(FormatError, match="holds float32"):
            FeatureFile.open(self.changed(tmp_path / "f.h5", change))

    @pytest.mark.parametrize(
        ("name", "index", "value"), [("parts", (7, 2, 1), np.nan), ("global_feature", (7, 0), np.inf)]
    )
    def test_not_finite(self, tmp_path: Path, name: str, index: tuple[int, ...], value: float) -> None:
        path = self.changed(tmp_path / "f.h5", lambda f: f[name].__setitem__(index, value))
        file = FeatureFile.open(path)
        with pytest.raises(FormatError, match="row 7"):
            file.load()
        with pytest.raises(FormatError, match="row 7"):
            list(file.blocks(3))

    def test_visibility_out_of_range(self, tmp_path: Path) -> None:
        path = self.changed(tmp_path / "f.h5", lambda f: f["visibility"].__setitem__((3, 3), 1.5))
        with pytest.raises(FormatError, match="outside"):
            FeatureFile.open(path).load()

    def test_features_that_cannot_be_compared(self, tmp_path: Path) -> None:
        gallery = FeatureFile.open(write(tmp_path / "g.h5"))
        same = FeatureFile.open(write(tmp_path / "q.h5")).load()
        require_comparable(same, gallery)
        shorter = FeatureFile.open(write(tmp_path / "s.h5", header(part_dim=5))).load()
        with pytest.raises(FormatError, match="6 numbers a part"):
            require_comparable(shorter, gallery)
        other = FeatureFile.open(write(tmp_path / "o.h5", header(attributes={"checkpoint_sha256": "b" * 64}))).load()
        with pytest.raises(FormatError, match="checkpoint aaaaaaaa"):
            require_comparable(other, gallery)
        flipped = {"checkpoint_sha256": "a" * 64, "flip": True}
        both = FeatureFile.open(write(tmp_path / "b.h5", header(attributes=flipped))).load()
        with pytest.raises(FormatError, match="of one view of each image") as caught:
            require_comparable(both, gallery)
        assert caught.value.hint == "extract.flip=false for the queries"


WRITER = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_matching_featurefile import header, rows
from pipeline.formats.features import FeatureWriter

made = header(4000, 64, 32)
with FeatureWriter.begin(Path({path!r}), made) as writer:
    print("ready", flush=True)
    while writer.done < writer.total:
        stop = min(writer.done + 8, writer.total)
        writer.append(*rows(writer.done, stop, 64, 32))
    writer.finish()
"""


@pytest.mark.slow
def test_sigkill_while_writing_then_resume(tmp_path: Path) -> None:
    global_feature = write(tmp_path / "whole.h5", header(4000, 64, 32)).read_bytes()
    draw = random.Random(0)
    interrupted = 0
    for attempt in range(5):
        path = tmp_path / f"{attempt}.h5"
        script = WRITER.format(tests=str(Path(__file__).parent), path=str(path))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = FeatureFile.open(path, allow_partial=True)
        interrupted += left.done < left.total
        np.testing.assert_array_equal(left.load().parts, rows(0, left.done, 64, 32)[0])
        with FeatureWriter.begin(path, header(4000, 64, 32)) as writer:
            assert writer.done == left.done
            writer.append(*rows(left.done, 4000, 64, 32))
            writer.finish()
        assert path.read_bytes() == global_feature
    assert interrupted > 0


@pytest.mark.parametrize("size", [100, 3000, 100_000])
def test_a_full_disk_is_told_in_words(tmp_path: Path, no_file_beyond: Callable[[int], None], size: int) -> None:
    no_file_beyond(size)
    with pytest.raises(ArtifactError, match=r"too large[^$]*make room"):
        FeatureWriter.begin(tmp_path / "features.h5", header(500, part_dim=64))
    assert not list(tmp_path.iterdir())

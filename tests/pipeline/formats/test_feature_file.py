"""Features files: what is written comes back, and what is wrong is refused with the place and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import FormatError
from pipeline.formats.feature_file import FeatureFile, feature_layout, require_comparable
from pipeline.formats.features import Features
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import FAILED, OK, canonical_json, open_or_create
from pipeline.parts import PARTS
from pipeline.runtime.files import sha256_bytes
from tests.helpers.features import saved, small_features

RECORD = {"checkpoint_sha256": "a" * 64, "flip": False}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "f.h5", small_features(provenance=Provenance(RECORD)))


def with_failed_rows(path: Path, failed: list[int], features: Features | None = None) -> Path:
    features = features or small_features()
    layout = feature_layout(
        names=features.names.tolist(),
        pids=features.pids,
        camids=features.camids,
        splits=features.splits.tolist(),
        thresholds=features.thresholds,
        part_dim=features.part_dim,
        global_dim=features.global_dim,
        notes=["pseudo cameras"],
    )
    status = np.full(len(features), OK, np.uint8)
    status[failed] = FAILED
    with open_or_create(path, layout, Provenance(RECORD)) as writer:
        writer.write(0, features.to_numpy(), status, {row: f"reason {row}" for row in failed})
        writer.finish()
    return path


def test_save__comes_back(path: Path) -> None:
    wanted, file = small_features(), FeatureFile.open(path)
    assert (len(file), file.part_dim, file.global_dim) == (10, 6, 4)
    loaded = file.load()
    for name, array in wanted.to_numpy().items():
        np.testing.assert_array_equal(loaded.to_numpy()[name], array)
        assert loaded.to_numpy()[name].dtype.kind == array.dtype.kind
    assert loaded.provenance.values == RECORD
    np.testing.assert_array_equal(loaded.visible, wanted.thresholds[None].repeat(10, 0) < np.float32(0.08))
    assert [each.name for each in path.parent.iterdir()] == ["f.h5"]
    assert path.read_bytes() == saved(path.parent / "again.h5", loaded).read_bytes()


def test_failed_rows__have_no_features(tmp_path: Path) -> None:
    file = FeatureFile.open(with_failed_rows(tmp_path / "f.h5", [2, 5, 9]))
    assert file.rows.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert file.notes == ("pseudo cameras",)
    assert [(each.path, each.reason) for each in file.failed] == [
        (f"gallery/é00{row}.jpg", f"reason {row}") for row in (2, 5, 9)
    ]
    assert file.load().parts[:, 0, 0].tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert file.split_rows("query").tolist() == [0, 1]
    found = [(before, block.parts[:, 0, 0].tolist()) for before, block in file.blocks(4)]
    assert found == [(0, [0, 1, 3]), (3, [4, 6, 7]), (6, [8])]


def test_rows__in_any_order_and_in_blocks(path: Path) -> None:
    file = FeatureFile.open(path)
    for rows in ([5, 2, 5], [0, 2, 1, 3], [], [3, 4, 5]):
        chosen = np.array(rows, dtype=np.int64)
        assert file.at(chosen).parts[:, 3, 1].tolist() == rows
        assert file.mapped().select(chosen).global_feature[:, 0].tolist() == [-row for row in rows]
        assert file.load(chosen).names.tolist() == [f"gallery/é00{row}.jpg" for row in rows]
    names = file.names(np.array([[3, 1], [3, 0]])).tolist()
    assert names == [[f"gallery/é00{row}.jpg" for row in line] for line in ((3, 1), (3, 0))]
    chosen = np.array([1, 2, 4, 8, 9])
    for reuse in (False, True):
        found = [(before, block.parts[:, 0, 0].tolist()) for before, block in file.blocks(3, chosen, reuse=reuse)]
        assert found == [(0, [1, 2]), (2, [4]), (3, [8, 9])]


@pytest.mark.parametrize(("part_dim", "global_dim"), [(0, 4), (6, 0)])
def test_models_without_parts_or_global_feature(tmp_path: Path, part_dim: int, global_dim: int) -> None:
    features = small_features(part_dim=part_dim, global_dim=global_dim)
    file = FeatureFile.open(saved(tmp_path / "f.h5", features))
    assert (file.part_dim, file.global_dim) == (part_dim, global_dim)
    for loaded in (file.load(), file.mapped()):
        assert loaded.parts.shape == (10, 7, part_dim)
        assert loaded.global_feature.shape == (10, global_dim)
    assert file.at(np.array([4, 1])).global_feature.shape == (2, global_dim)


def test_a_file_rewritten_in_chunks_reads_alike(path: Path) -> None:
    before = FeatureFile.open(path).load()
    with h5py.File(path, "r+") as file:
        stored = file["parts"][:]
        del file["parts"]
        file.create_dataset("parts", data=stored, chunks=True, compression="gzip")
    opened = FeatureFile.open(path)
    np.testing.assert_array_equal(opened.load().parts, before.parts)
    for features in (opened.at(np.array([7, 3])), opened.mapped().select(np.array([7, 3]))):
        np.testing.assert_array_equal(features.parts, before.parts[[7, 3]])


def test_open__incomplete_file(tmp_path: Path) -> None:
    layout = feature_layout(
        names=["a", "b"], pids=[1, 2], camids=[0, 0], splits=["all"] * 2, thresholds=[0] * 7, part_dim=2, global_dim=2
    )
    path = tmp_path / "f.h5"
    with open_or_create(path, layout, Provenance({})) as writer:
        writer.write(0, {"parts": np.ones((1, 7, 2)), "global_feature": np.ones((1, 2)), "visibility": np.ones((1, 7))},
                     np.array([OK], np.uint8))  # fmt: skip
    with pytest.raises(FormatError, match="1 of 2"):
        FeatureFile.open(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"thresholds": [0.1] * 6}, "thresholds"),
        ({"splits": ["tset"] * 2}, "tset"),
        ({"part_dim": 0, "global_dim": 0}, "no feature"),
    ],
)
def test_feature_layout__contradictions(changes: dict[str, Any], named: str) -> None:
    values = {
        "names": ["a", "b"], "pids": [1, 2], "camids": [0, 0], "splits": ["all"] * 2, "thresholds": [0.1] * 7,
        "part_dim": 2, "global_dim": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match=named):
        feature_layout(**(values | changes))


@pytest.mark.parametrize("content", [b"name,pid\n", b"", bytes(600)])
def test_open__files_of_other_programs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.h5"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        FeatureFile.open(path)
    assert caught.value.where == str(path)
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros(3)
    with pytest.raises(FormatError, match="features file"):
        FeatureFile.open(path)
    with pytest.raises(FormatError):
        FeatureFile.open(tmp_path / "none.h5")


def test_open__cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FormatError):
        FeatureFile.open(path)


def with_attribute(path: Path, name: str, value: str) -> None:
    """Change an attribute as a program would that keeps the checksum right."""
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
        plain = {
            key: v if isinstance(v, str) else int(v) for key, v in file.attrs.items() if key != "attributes_sha256"
        }
        file.attrs["attributes_sha256"] = sha256_bytes(canonical_json(plain).encode())


def test_open__other_parts(path: Path) -> None:
    with_attribute(path, "part_names", ",".join(reversed(PARTS)))
    with pytest.raises(FormatError, match="bottom,middle"):
        FeatureFile.open(path)


@pytest.mark.parametrize("name", ["parts", "global_feature", "visibility", "pids", "names", "thresholds"])
def test_open__other_shapes_types_and_missing_datasets(path: Path, name: str) -> None:
    def replaced(data: Any) -> None:
        with h5py.File(path, "r+") as file:
            stored = file[name][...]
            del file[name]
            if data is not None:
                file[name] = data(stored)

    for data in (lambda stored: stored[:5], lambda _: np.zeros(10, np.complex64), None):
        replaced(data)
        with pytest.raises(FormatError, match="/parts|/global_feature" if name == "parts" else f"/{name}"):
            FeatureFile.open(path)
        saved(path, small_features())


@pytest.mark.parametrize(
    ("name", "index", "value", "found"),
    [
        ("parts", (7, 2, 1), np.nan, "row 7"),
        ("global_feature", (7, 0), np.inf, "row 7"),
        ("visibility", (3, 3), 1.5, r"\[0, 1\]"),
    ],
)
def test_values_that_cannot_be(path: Path, name: str, index: tuple[int, ...], value: float, found: str) -> None:
    with h5py.File(path, "r+") as file:
        file[name][index] = value
    file = FeatureFile.open(path)
    for read in (file.load, lambda: list(file.blocks(3)), lambda: file.at(np.arange(10))):
        with pytest.raises(FormatError, match=found):
            read()


def test_require_comparable(path: Path, tmp_path: Path) -> None:
    gallery = FeatureFile.open(path)

    def query(dim: int = 6, **changes: Any) -> Features:
        return small_features(part_dim=dim, provenance=Provenance(RECORD | changes))

    require_comparable(query(), gallery)
    require_comparable(query(), gallery.load())
    for other, found in (
        (query(dim=5), "part_dim 6"),
        (query(checkpoint_sha256="b" * 64), "aaaaaaaa"),
        (query(flip=True), r"extract\.flip=false"),
    ):
        with pytest.raises(FormatError, match=found) as caught:
            require_comparable(other, gallery)
        assert caught.value.where == str(path)


@pytest.mark.parametrize("rows", [[5, 2, 7], [6, 7, 8], None])
def test_load__row_that_is_not_finite_is_named(path: Path, rows: list[int] | None) -> None:
    with h5py.File(path, "r+") as file:
        file["global_feature"][7] = np.nan
    with pytest.raises(FormatError, match=r"1 rows, first in row 7"):
        FeatureFile.open(path).load(None if rows is None else np.array(rows))


def test_read_npz__values_are_checked(tmp_path: Path) -> None:
    features = small_features()
    features.global_feature[3] = np.inf
    features.save(tmp_path / "f.npz")
    with pytest.raises(FormatError, match="first in row 3"):
        Features.load(tmp_path / "f.npz")

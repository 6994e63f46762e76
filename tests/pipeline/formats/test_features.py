"""The container of features."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, FormatError
from pipeline.formats.features import Features
from pipeline.parts import PARTS
from tests.helpers.features import small_features


def test_from_arrays__defaults() -> None:
    features = Features.from_arrays(np.ones((3, 7, 2), np.float32))
    assert features.visible.all()
    assert features.pids.tolist() == features.camids.tolist() == [-1] * 3
    assert features.splits.tolist() == ["all"] * 3
    assert features.global_dim == 0
    assert len(Features.from_arrays(global_feature=np.ones((4, 2)))) == 4


def test_from_arrays__does_not_copy_float32() -> None:
    parts = np.ones((3, 7, 2), np.float32)
    assert Features.from_arrays(parts).parts is parts


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "no features"),
        ({"parts": np.ones((3, 7))}, r"parts \(3, 7\)"),
        ({"parts": np.ones((3, 7, 2)), "visibility": np.ones((3, 6))}, r"visibility \(3, 6\)"),
        ({"parts": np.ones((3, 7, 2)), "global_feature": np.ones((2, 2))}, r"global_feature \(2, 2\)"),
        ({"parts": np.ones((3, 7, 2)), "pids": [1, 2]}, r"pids \(2,\)"),
    ],
)
def test_from_arrays__shapes_that_do_not_fit(arrays: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        Features.from_arrays(**arrays)


def test_select_and_split() -> None:
    features = small_features()
    assert features.split("gallery").parts[:, 0, 0].tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert features.split("gallery").parts.base is not None  # a view
    assert len(features.split("query", "gallery")) == 10
    assert features.select(np.array([2, 5])).names.tolist() == ["gallery/é002.jpg", "gallery/é005.jpg"]
    assert features.select(features.pids == 1).pids.tolist() == [1, 1, 1]
    assert features.all_visible().visible.all()


@pytest.mark.parametrize("name", ["f.h5", "f.npz"])
def test_save_and_load(tmp_path: Path, name: str) -> None:
    features = small_features()
    features.save(tmp_path / name)
    loaded = Features.load(tmp_path / name)
    for key, array in features.to_numpy().items():
        np.testing.assert_array_equal(loaded.to_numpy()[key], array)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_load__archives_of_other_programs(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not found"):
        Features.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", parts=np.ones(3))
    with pytest.raises(FormatError, match="not a features file"):
        Features.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("parts")
    with pytest.raises(FormatError, match="cannot be read"):
        Features.load(tmp_path / "text.npz")


def test_to_pandas__one_row_per_image() -> None:
    pytest.importorskip("pandas")
    table = small_features().to_pandas()
    assert list(table.columns) == ["name", "pid", "camid", "split", *(f"visibility_{part}" for part in PARTS)]
    assert table["pid"].tolist() == small_features().pids.tolist()


def test_to_pandas__without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pandas") as caught:
        small_features().to_pandas()
    assert caught.value.hint == "pip install pandas"

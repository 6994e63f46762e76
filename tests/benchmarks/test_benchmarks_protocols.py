"""The protocol runner: suites, cells, summaries; and the development set of occluded queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import occluded_market, protocols
from benchmarks.protocols import Cell, RunOptions, Suite, finished, read_suite, result_of, stages_of
from benchmarks.report import Result
from pipeline.config_file import load_config
from pipeline.datasets.images import read_image, write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.datasets.registry import open_dataset
from pipeline.training.occluders import occluder_tiles, read_tiles


@pytest.mark.parametrize("path", sorted(protocols.SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_suites__are_valid_and_name_each_cell_once(path: Path) -> None:
    suite = read_suite(path)
    assert len({cell.key for cell in suite.cells}) == len(suite.cells)
    for cell in suite.cells:
        stages = dict(stages_of(cell, "cpu"))
        assert all(config.train.seed == cell.seed for config in stages.values())
        assert len(stages) == (1 if cell.then is None else 2)


def test_suite__runs_the_first_seed_of_all_cells_first(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(
        'train = ["a", "b"]\ntests = ["c"]\nseeds = [0, 1]\ncommon = ["train.epochs=2"]\n'
        '[result]\nquestion = "Which?"\n[columns]\n"mAP" = "c.shrunk.mAP"\n'
        '[[cells]]\nname = "x"\npreset = "strong"\nset = ["train.lr=1e-3"]\n'
        '[[cells]]\nname = "y"\npreset = "baseline"\nseeds = [0]\ntrain = ["a"]\n'
    )
    cells = read_suite(path).cells
    assert [(cell.name, cell.train, cell.seed) for cell in cells] == [
        ("x", "a", 0), ("x", "b", 0), ("y", "a", 0), ("x", "a", 1), ("x", "b", 1),
    ]  # fmt: skip
    assert cells[0].set == ("train.epochs=2", "train.lr=1e-3")


def cell(seed: int, then: tuple[str, ...] | None = None) -> Cell:
    return Cell("x", "strong", (), then, "a", ("c",), seed)


RESULT = {"section": "accuracy", "question": "Which?", "data": "some"}
COLUMNS = {"mAP": "c.shrunk.mAP", "head": "c.visibility_auc.head"}


def table(cells: Sequence[Cell], lines: Mapping[str, Any]) -> Result:
    return result_of(Suite(tuple(cells), COLUMNS, RESULT), lines, "cpu", "command")


def line_of(value: float) -> dict[str, Any]:
    return {"tests": {"c": {"shrunk": {"mAP": value}}}}


def test_result__has_one_value_per_seed_and_only_finished_cells() -> None:
    lines = {cell(seed).key: {"first": line_of(value)} for seed, value in ((0, 50.0), (1, 52.0))}
    result = table((cell(0), cell(1), cell(2)), lines)
    assert result.seeds == [0, 1]
    assert [(row.name, row.values) for row in result.rows] == [
        ("x", {"c.shrunk.mAP": [50.0, 52.0], "c.visibility_auc.head": None})
    ]


def test_result__of_two_stages_shows_the_second() -> None:
    one = cell(0, then=("train.epochs=3",))
    result = table((one,), {one.key: {"first": line_of(1.0), "second": line_of(2.0)}})
    assert result.rows[0].values["c.shrunk.mAP"] == [2.0]


def test_result__of_several_training_sets_names_them() -> None:
    cells = (cell(0), replace(cell(0), train="b"))
    result = table(cells, {member.key: {"first": line_of(1.0)} for member in cells})
    assert [row.name for row in result.rows] == ["x, a", "x, b"]


def test_finished__leaves_out_failed_cells(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in ({"key": "a"}, {"key": "b", "error": "x"})))
    assert finished(path) == {"a": {"key": "a"}}
    assert finished(tmp_path / "none") == {}


def test_run_suite__skips_finished_cells_and_reports_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "build_all_masks", lambda cells, options: None)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"key": cell(0).key}) + "\n")
    options = RunOptions({"a": "nowhere:"}, tmp_path, lines, "cpu", stop=float("inf"), typical=1.0)
    protocols.run_suite((cell(0), cell(1)), options, workers=1)
    last = json.loads(lines.read_text().splitlines()[-1])
    assert last["key"] == cell(1).key
    assert "DataError" in last["error"]


def test_mask_teacher__is_a_data_set_of_the_command_line_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = Dataset("synthetic", "people", tmp_path, (Record("a.jpg", 1, 1, "train"),), label_maps=tmp_path / "labels")
    opened = {"synthetic:people": people}
    monkeypatch.setattr(protocols, "open_dataset", lambda spec, **_: opened[spec])
    options = RunOptions({"people": "synthetic:people"}, tmp_path, tmp_path / "x", "cpu", stop=0, typical=1)
    taught = load_config(overrides=["train.mask_teacher=0.25", "train.teacher_data=people"])
    teacher = protocols.mask_teacher(taught, options)
    assert teacher is not None
    assert teacher.dataset is people
    assert protocols.mask_teacher(load_config(), options) is None


def test_occluded_market__truncates_every_third_query_and_occludes_the_others() -> None:
    params = occluded_market.draw(60, tiles=8)
    occluded = params.occluder.bottom > params.occluder.top
    assert occluded.tolist() == [i % 3 > 0 for i in range(60)]
    cut = (params.kept.bottom < occluded_market.HEIGHT) | (params.kept.right - params.kept.left < occluded_market.WIDTH)
    assert cut.tolist() == [i % 3 == 0 for i in range(60)]
    again = occluded_market.draw(60, tiles=8)
    assert torch.equal(again.occluder.left, params.occluder.left)


def test_occluded_market__has_cut_outs_that_training_lacks() -> None:
    training = {tile.numpy().tobytes() for tile in occluder_tiles()}
    held_out = {tile.numpy().tobytes() for tile in read_tiles(occluded_market.TILES)}
    assert len(held_out) > 50
    assert training.isdisjoint(held_out)


def test_occluded_market__covers_masks_with_their_pixels() -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (3, 256, 128, 3), dtype=np.uint8))
    parts = torch.full((3, 4, 16, 8), 255, dtype=torch.uint8)
    occluded, left = occluded_market.occlude(images, parts, torch.full((3, 1, 64, 32), 255, dtype=torch.uint8))
    assert occluded.shape == images.shape
    assert left[0].eq(255).all(), "truncation only stretches"
    for i in (1, 2):
        changed = (occluded[i].int() - images[i].int()).abs().amax(2) > 1
        assert 0.02 < changed.float().mean() < 0.95
        assert left[i].float().mean() < 254


def test_truncated_market__keeps_the_proportions_of_what_is_left(tmp_path: Path) -> None:
    pixels = np.arange(128 * 64 * 3, dtype=np.uint32).reshape(128, 64, 3).astype(np.uint8)
    assert np.array_equal(occluded_market.cropped(pixels, (0.0, 0.5, 0.0, 1.0)), pixels[:64])
    assert np.array_equal(occluded_market.cropped(pixels, (0.0, 1.0, 0.25, 1.0)), pixels[:, 16:])
    write_image(tmp_path / "in" / "gallery.png", pixels)
    records = (Record("query.png", 1, 1, "query"), Record("gallery.png", 1, 2, "gallery"))
    out = tmp_path / "out"
    names = occluded_market.write(Dataset("csv", "in", tmp_path / "in", records), out, records[:1], [pixels[:64]])
    written = open_dataset(f"csv:{out / 'dataset.csv'}", expect_counts=False)
    assert [record.path for record in written.split("query")] == names
    assert read_image(out / names[0]).shape == (64, 64, 3)
    (gallery,) = written.split("gallery")
    assert np.array_equal(read_image(written.path_of(gallery)), pixels)

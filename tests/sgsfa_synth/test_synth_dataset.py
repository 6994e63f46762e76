from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import SynthConfig
from pipeline.config_file import load_config
from pipeline.datasets.registry import open_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.runtime.progress import SILENT
from sgsfa_synth import dataset as module
from sgsfa_synth.dataset import parameters, render_dataset
from sgsfa_synth.presets import PRESETS
from sgsfa_synth.scene import palette

TINY = SynthConfig(ids=3, cameras=2, shots=2, height=64, width=32, jobs=1)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "people"
    render_dataset(out, TINY)
    return out


def test_table__matches_the_files(made: Path) -> None:
    with (made / "dataset.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", "pid", "camid", "split", "occluder", "visible", "truncated", "pose", "outfit"]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        with Image.open(made / row["path"]) as image:
            assert image.format == "JPEG"
            assert image.size == (32, 64)
        with Image.open((made / "labels" / row["path"]).with_suffix(".png")) as labels:
            assert labels.mode == "P"
            assert labels.size == (32, 64)
            assert labels.getpalette()[:60] == palette().ravel().tolist()
            assert np.asarray(labels).max() < 20
        assert (row["occluder"] != "") or row["split"] != "query"
        if row["occluder"]:
            assert 0.25 <= float(row["visible"]) <= 0.9
    on_disk = {path.relative_to(made).as_posix() for path in made.rglob("*.jpg")}
    assert on_disk == {row["path"] for row in rows}


def test_render__description_marks_the_set_complete(made: Path, tmp_path: Path) -> None:
    """Also for a process killed while it removed `partial/`."""
    out = tmp_path / "people"
    shutil.copytree(made, out)
    (out / "partial").mkdir()
    (out / "partial" / "000001.json").write_text("[]")
    assert render_dataset(out, TINY).rendered == 0
    assert digests(out) == digests(made)


def test_render__resumes_after_a_full_disk(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "people"

    def full(path: Path, value: object) -> None:
        path.parent.mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            render_dataset(out, TINY)
    assert [path.name for path in out.iterdir()] == ["partial"]
    render_dataset(out, TINY)
    assert digests(out) == digests(made)


def test_render__into_the_current_folder(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    render_dataset(Path(), TINY)
    assert digests(tmp_path) == digests(made)


def test_description__parameters_licence_statistics(made: Path) -> None:
    described = json.loads((made / "dataset.json").read_text())
    assert described["parameters"] == module.parameters(TINY)
    assert "jobs" not in described["parameters"]
    assert "CC0" in described["licence"]["images and label maps"]
    assert described["labels"]["13"] == "face"
    splits = described["statistics"]["splits"]
    assert sum(split["images"] for split in splits.values()) == len(list(made.rglob("*.jpg")))
    assert splits["query"]["occluded"] == splits["query"]["images"]
    assert splits["gallery"]["distractor images"] == 2
    assert not (made / "partial").exists()


def test_open__reads_records_and_label_maps(made: Path) -> None:
    dataset = open_dataset(f"synthetic:{made}")
    assert {record.split for record in dataset.records} == {"train", "query", "gallery"}
    assert dataset.label_maps == made / "labels"
    record = dataset.split("query")[0]
    assert dataset.extra[record.path]["occluder"]


@pytest.mark.slow
def test_render__same_bytes_for_any_number_of_workers(made: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path / "two", TINY.model_copy(update={"jobs": 2}))
    assert digests(tmp_path / "two") == digests(made)


def test_render__interrupted_run_resumes_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "people"
    drawn: list[int] = []
    original = module.render

    def fails_later(*args: object, **options: object) -> object:
        if len(drawn) == 6:
            raise KeyboardInterrupt
        drawn.append(1)
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "render", fails_later)
    with pytest.raises(KeyboardInterrupt):
        render_dataset(out, TINY)
    assert (out / "partial").is_dir()
    assert not (out / "dataset.json").exists()
    monkeypatch.setattr(module, "render", original)
    summary = render_dataset(out, TINY)
    assert summary.rendered == summary.images - 4
    assert digests(out) == digests(made)


@pytest.mark.slow
def test_render__killed_process_resumes_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "people"
    code = (
        "import sys; from pathlib import Path; from pipeline.config import SynthConfig; "
        "from sgsfa_synth.dataset import render_dataset; "
        "render_dataset(Path(sys.argv[1]), SynthConfig.model_validate_json(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out), TINY.model_dump_json()])
    deadline = time.monotonic() + 240
    while not list(out.glob("partial/0*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert list(out.glob("partial/0*.json")), "it had finished a person"
    assert not (out / "dataset.json").exists(), "but not all"
    summary = render_dataset(out, TINY)
    assert 0 < summary.rendered < summary.images
    assert digests(out) == digests(made)


def test_render__complete_set_is_kept(made: Path) -> None:
    before = digests(made)
    assert render_dataset(made, TINY, progress=SILENT).rendered == 0
    assert digests(made) == before


def test_render__other_parameters_are_rejected(made: Path) -> None:
    with pytest.raises(DataError, match="other parameters"):
        render_dataset(made, TINY.model_copy(update={"seed": 1}))


def test_render__other_content_is_rejected_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError):
        render_dataset(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_render__unfinished_set_of_other_parameters_is_rejected(tmp_path: Path) -> None:
    module._claim(tmp_path / "people", module.parameters(TINY))
    with pytest.raises(DataError, match="unfinished"):
        render_dataset(tmp_path / "people", TINY.model_copy(update={"tone": 0.9}))


def test_render__invalid_size_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        render_dataset(tmp_path / "people", TINY.model_copy(update={"ids": 10**6}))
    assert not (tmp_path / "people").exists()


def test_preset__demo_is_that_of_the_run() -> None:
    assert parameters(PRESETS["demo"]) == parameters(load_config(preset="demo").synth)

"""`sgsfa train` and `sgsfa extract` from the command line, on a small data set of noise."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pipeline.datasets.images import write_image
from pipeline.formats.features import Features
from sgsfa_cli.main import app

SETTINGS = """
name = "few"
artifacts = "artifacts"
[data]
source = "csv:people/people.csv"
[model]
kind = "baseline"
backbone = "mobilenet_v2"
weights = "none"
height = 64
width = 32
global_dim = 8
[train]
epochs = 1
epoch_length = "identities"
identities = 2
instances = 2
device = "cpu"
[extract]
device = "cpu"
"""


def sgsfa(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")
    stream = np.random.default_rng(0)
    rows = ["path,pid,camid,split"]
    for pid in range(1, 5):
        for shot in range(3):
            split = "train" if pid < 3 else ("query" if shot == 0 else "gallery")
            write_image(root / "people" / f"{pid}_{shot}.png", stream.integers(0, 256, (64, 32, 3), dtype=np.uint8))
            rows.append(f"{pid}_{shot}.png,{pid},{shot + 1},{split}")
    (root / "people" / "people.csv").write_text("\n".join(rows) + "\n")
    (root / "few.toml").write_text(SETTINGS)
    return root


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_train__repeats_only_by_force() -> None:
    first = as_json(sgsfa("train", "-c", "few.toml", "--json"))
    assert first["action"] == "ran"
    assert (first["images"], first["identities"], first["steps"]) == (6, 2, 1)
    for name in ("model.safetensors", "curves.png", "metrics.jsonl", "training.json", "manifest.json"):
        assert (Path(first["folder"]) / name).is_file()
    shown = sgsfa("train", "-c", "few.toml")
    assert shown.exit_code == 0, shown.output
    assert "Already trained" in shown.stdout
    assert first["folder"] in shown.stdout
    again = as_json(sgsfa("train", "-c", "few.toml", "--force", "--json"))
    assert again["action"] == "ran"
    assert again["folder"] == first["folder"]


def test_train__options_take_precedence() -> None:
    result = as_json(sgsfa("train", "-c", "few.toml", "--epochs", 2, "--weights", "none", "--device", "cpu", "--json"))
    assert (result["epochs"], result["steps"]) == (2, 2)


def test_train__starts_from_a_checkpoint_in_any_folder(tmp_path: Path) -> None:
    checkpoint = Path(as_json(sgsfa("train", "-c", "few.toml", "--json"))["folder"]) / "model.safetensors"
    first = as_json(sgsfa("train", "-c", "few.toml", "--start", checkpoint, "--json"))
    assert first["action"] == "ran"
    moved = tmp_path / "moved.safetensors"
    shutil.copy(checkpoint, moved)
    # Its folder does not matter, and the weights of the backbone alone are not read.
    again = as_json(sgsfa("train", "-c", "few.toml", "--start", moved, "--set", "model.weights=none.pth", "--json"))
    assert (again["action"], again["folder"]) == ("reused", first["folder"])
    both = sgsfa("train", "-c", "few.toml", "--start", moved, "--weights", "none")
    assert both.exit_code == 2
    assert "--weights and --start" in both.output
    none = sgsfa("train", "-c", "few.toml", "--start", tmp_path / "none.safetensors")
    assert none.exit_code == 2
    assert "none.safetensors" in re.sub(r"[\s│]", "", none.output)


def test_extract__of_a_run_and_of_any_images(tmp_path: Path) -> None:
    run = as_json(sgsfa("extract", "-c", "few.toml", "--json"))
    assert [file["images"] for file in run["files"]] == [6]
    checkpoint = Path(as_json(sgsfa("train", "-c", "few.toml", "--json"))["folder"]) / "model.safetensors"
    options = ("--checkpoint", checkpoint, "--data", "csv:people/people.csv", "--device", "cpu")
    out = tmp_path / "f.h5"
    report = as_json(sgsfa("extract", *options, "--out", out, "--split", "gallery", "--batch-size", 3, "--json"))
    assert (report["total"], report["done"]) == (4, 4)
    assert Features.load(out).splits.tolist() == ["gallery"] * 4
    shown = sgsfa("extract", *options, "--out", tmp_path / "g.h5", "--flip")
    assert shown.exit_code == 0, shown.output
    assert Features.load(tmp_path / "g.h5").provenance.values["flip"] is True
    again = sgsfa("extract", *options, "--out", out, "--split", "gallery", "--batch-size", 3, "--json")
    assert as_json(again)["resumed"] == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "-c", "few.toml", "--weights", "missing.pth"), "not found"),
        (("train", "-c", "few.toml", "--set", "train.identities=9"), "identities"),
        (("extract", "--data", "csv:people/people.csv"), "missing: --out"),
        (("extract", "-c", "few.toml", "--split", "query"), "--split"),
        (
            ("extract", "--data", "csv:people/people.csv", "--checkpoint", "x", "--out", "y", "--split", "z"),
            "'z' is not a valid split",
        ),
        (("extract", "--data", "csv:people/people.csv", "--checkpoint", "x", "--out", "y"), "checkpoint not found"),
    ],
)
def test_errors__name_the_mistake(arguments: tuple[str, ...], named: str) -> None:
    result = sgsfa(*arguments)
    assert result.exit_code == 2, result.output
    assert named in " ".join(result.stderr.split())


def test_extract__unreadable_images_exit_with_3(tmp_path: Path, folder: Path) -> None:
    checkpoint = Path(as_json(sgsfa("train", "-c", "few.toml", "--json"))["folder"]) / "model.safetensors"
    broken = tmp_path / "people"
    broken.mkdir()
    for image in (folder / "people").iterdir():
        (broken / image.name).write_bytes(image.read_bytes())
    (broken / "3_1.png").write_bytes(b"no image")
    result = sgsfa(
        "extract", "--checkpoint", checkpoint, "--data", f"csv:{broken / 'people.csv'}", "--out", tmp_path / "f.h5"
    )
    assert result.exit_code == 3, result.output
    assert "3_1.png" in result.stderr
    assert len(Features.load(tmp_path / "f.h5")) == 5

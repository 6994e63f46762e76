from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sgsfa_cli.main import app

People = tuple[Path, list[str]]


def sgsfa(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["masks", *map(str, arguments)])


@pytest.fixture
def built(tmp_path: Path, people: People, tiny_parser: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    result = sgsfa("build", people[0], "--out", "m.h5", "--parser", tiny_parser, "--device", "cpu", "--batch-size", "5")
    assert result.exit_code == 0, result.output
    return tmp_path / "m.h5"


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_build_inspect_stats_preview_export(built: Path, people: People) -> None:
    described = as_json(sgsfa("inspect", built, "--json"))
    assert (described["images"], described["done"], described["provenance"]["batch_size"]) == (40, 40, 5)
    assert "40 images: 40 with masks" in sgsfa("inspect", built).stdout
    assert "quality" in sgsfa("inspect", built, "0003.jpg").stdout
    assert as_json(sgsfa("inspect", built, "0003.jpg", "--json"))["name"] == "cam1/0003.jpg"
    assert len(as_json(sgsfa("stats", built, "--json", "--worst", 7))["worst"]) == 7
    shown = sgsfa("stats", built, "--data", f"folder:{people[0]}", "--sheet", "worst.png")
    assert "40 images with masks" in shown.stdout
    assert Path("worst.png").is_file()
    drawn = as_json(sgsfa("preview", built, "-d", people[0], "-n", 6, "--json"))
    assert len(drawn["images"]) == 6
    assert Path("masks.png").is_file()
    assert as_json(sgsfa("preview", built, "-d", people[0], "--image", "0003.jpg", "--json"))["images"] == [
        "cam1/0003.jpg"
    ]
    assert sgsfa("preview", built, "-d", people[0], "--worst", "-n", 3, "-o", "w.png").exit_code == 0
    assert as_json(sgsfa("export", built, "-o", "out", "--json"))["images"] == 40


def test_a_second_build_does_nothing(built: Path, people: People, tiny_parser: str) -> None:
    report = as_json(
        sgsfa("build", people[0], "-o", "m.h5", "--parser", tiny_parser, "--device", "cpu", "--json", "-q")
    )
    assert (report["resumed"], report["images_per_second"], report["file"]) == (40, 0.0, "m.h5")


def test_failed_images_end_with_3(
    tmp_path: Path, people: People, tiny_parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people[0], tmp_path / "people")
    (tmp_path / "people" / "cam0" / "0000.jpg").write_text("text")
    command = ("build", "folder:people", "--out", "m.h5", "--parser", tiny_parser, "--device", "cpu")
    result = sgsfa(*command)
    assert result.exit_code == 3
    assert "masks of 39 images" in result.stdout
    assert "1 of 40 inputs were skipped" in result.stderr
    assert "cam0/0000.jpg" in result.stderr
    assert sgsfa(*command, "--allow-failed").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "people", "--parser", "biultin"), "did you mean 'builtin'?"),
        (("build", "nothing:there"), "unknown kind of data set"),
        (("build", "nowhere"), "the data folder does not exist"),
        (("build", "list.csv"), "pid, split are missing"),
        (("build", "rendered"), "synthetic:rendered"),
        (("build", "--out", "m.h5"), "--out needs images"),
        (("build", "people", "--batch-size", "many"), "masks.batch_size"),
        (("build", "people", "--grouping", "sspp"), "did you mean 'ssp'?"),
        (("build", "people", "--split", "query"), "no images in the split query"),
        (("inspect", "missing.h5"), "mask file not found"),
        (("stats", "m.h5", "--sheet", "worst.png"), "--data KIND:PATH"),
        (("labels", "lip20"), "did you mean 'lip-20'?"),
    ],
)
def test_mistakes_end_with_2_and_say_what(
    built: Path, people: People, tiny_parser: str, arguments: tuple[str, ...], said: str
) -> None:
    shutil.copytree(people[0], "people")
    Path("list.csv").write_text("path\n")
    Path("rendered/labels").mkdir(parents=True)
    Path("rendered/dataset.csv").write_text("path\n")
    if "build" in arguments and "--parser" not in arguments:
        arguments = (*arguments, "--parser", tiny_parser)
    result = sgsfa(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_labels(tmp_path: Path) -> None:
    assert "sapiens-28" in sgsfa("labels").stdout
    lip = sgsfa("labels", "lip-20", "--grouping", "ssp").stdout
    assert "left-shoe" in lip
    assert "body only" in lip
    assert "without labels: shoes" in sgsfa("labels", "pascal-7").stdout
    assert as_json(sgsfa("labels", "pascal-7", "--json"))["grouping"]["parts"][3] is None
    assert len(as_json(sgsfa("labels", "--json"))["label_sets"]) == 8

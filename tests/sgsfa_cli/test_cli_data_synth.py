from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sgsfa_cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sgsfa", *arguments])
    with pytest.raises(SystemExit) as stop:
        main.run()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ids", "0"), "ids"),
        (("--ids", "1000000"), "distinct"),
        (("--cameras", "1"), "cameras"),
        (("--occlusion", "1.5"), "occlusion"),
        (("--size", "256"), "HEIGHTxWIDTH"),
        (("--preset", "tinny"), "tiny"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "people"
    assert run(monkeypatch, "data", "synth", str(out), *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_foreign_folder_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert run(monkeypatch, "data", "synth", str(tmp_path), "--preset", "tiny") == 2
    assert "thesis" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_people_are_rendered_and_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "people"
    sizes = ("--ids", "2", "--cameras", "2", "--shots", "1", "--size", "64x32", "--jobs", "1")
    assert run(monkeypatch, "data", "synth", str(out), "--preset", "tiny", *sizes, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(list(out.rglob("*.jpg")))
    sheet = tmp_path / "sheet.png"
    assert run(monkeypatch, "data", "preview", f"synthetic:{out}", "--out", str(sheet)) == 0
    assert sheet.is_file()

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from sgsfa_cli import main


@pytest.fixture
def spec(tmp_path: Path) -> str:
    rows = ["path,pid,camid,split"]
    for number in range(12):
        Image.new("RGB", (32, 64), (20 * number, 60, 90)).save(tmp_path / f"{number:02}.jpg")
        split = ("train", "query", "gallery")[number // 4]
        rows.append(f"{number:02}.jpg,{1 if split == 'train' else 2},{number % 4},{split}")
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{tmp_path / 'people.csv'}"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sgsfa", *arguments])
    with pytest.raises(SystemExit) as stop:
        main.run()
    return int(stop.value.code or 0)


def test_check_of_a_sound_set(spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "data", "check", spec) == 0
    text = capsys.readouterr().out
    assert "no faults" in text
    assert "12 of 12 image files decoded; smallest 32x64" in text
    assert "Published" not in text


def test_check_as_json(spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "data", "check", spec, "--json", "--no-decode", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is True
    assert [(split["split"], split["images"]) for split in report["splits"]] == [
        ("train", 4), ("query", 4), ("gallery", 4),
    ]  # fmt: skip
    assert (report["images"], report["decoded"]) == (12, 0)


def test_check_ends_with_3_when_only_images_are_bad(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (tmp_path / "05.jpg").read_bytes()
    (tmp_path / "05.jpg").write_bytes(data[:-100])
    assert run(monkeypatch, "data", "check", spec) == 3
    out, err = capsys.readouterr()
    assert "05.jpg" in out
    assert "truncated" in out
    assert "1 of 12 inputs were skipped" in err
    assert run(monkeypatch, "data", "check", spec, "--no-decode") == 0


def test_check_ends_with_2_when_the_set_is_faulty(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "people.csv").open("a") as stream:
        stream.writelines(f"../{number}.jpg,1,1,train\n" for number in range(40))
    assert run(monkeypatch, "data", "check", spec, "--json") == 2
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 40
    assert run(monkeypatch, "data", "check", spec) == 2
    out, err = capsys.readouterr()
    assert "40 faults, the first 30 (--all lists them all)" in out
    assert "40 faults in the data set (invalid row)" in err
    assert run(monkeypatch, "data", "check", spec, "--all") == 2
    assert "../39.jpg" in capsys.readouterr().out


def test_check_shows_published_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "data", "check", f"market1501:{tmp_path}") == 2
    out = capsys.readouterr().out
    assert "12,936" in out
    assert "differs" in out


def test_an_unknown_kind_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "data", "check", "market:/data") == 2
    assert "did you mean 'market1501'?" in capsys.readouterr().err


def test_list_names_every_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "data", "list") == 0
    text = capsys.readouterr().out
    for part in (
        "market1501:PATH",
        "partial-reid/partial",
        "query 2,210 / 519",
        "withdrawn by its authors",
        "(detected)",
    ):
        assert part in text
    assert run(monkeypatch, "data", "list", "--json") == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert len(kinds) == 12
    market = next(kind for kind in kinds if kind["name"] == "market1501")
    assert market["counts"][""]["gallery"] == {"images": 15_913, "ids": 750, "each": None}


def test_preview_writes_a_picture(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheets" / "people.png"
    assert run(monkeypatch, "data", "preview", spec, "--out", str(out), "--split", "query", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    with Image.open(out) as sheet:
        assert sheet.size == (report["width"], report["height"])
    assert run(monkeypatch, "data", "preview", spec, "--out", str(out), "--split", "querry") == 2
    assert "did you mean 'query'?" in capsys.readouterr().err
    assert run(monkeypatch, "data", "preview", spec, "--out", str(tmp_path / "people.xyz")) == 2


def test_counts_can_be_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("Probe", "Gallery"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (16, 32)).save(tmp_path / folder / "001.jpg")
    spec = f"partial-ilids:{tmp_path}"
    assert run(monkeypatch, "data", "check", spec) == 2
    assert run(monkeypatch, "data", "check", spec, "--expect-counts", "on") == 2
    capsys.readouterr()
    assert run(monkeypatch, "data", "check", spec, "--expect-counts", "off", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"]
    assert any("query: found 1 images" in note for note in report["notes"])
    assert run(monkeypatch, "data", "check", f"partial-ilids:{tmp_path / 'Probe'}", "--expect-counts", "off") == 2

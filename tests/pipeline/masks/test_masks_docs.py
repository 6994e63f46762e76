"""What the pages show must work."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import MasksConfig
from pipeline.formats.masks import MaskFile
from pipeline.masks.build import build_masks
from pipeline.parsing import parser as parser_module
from pipeline.parsing.labels import load_grouping, load_label_set
from pipeline.parsing.sidecar import Sidecar, read_sidecar

DOCS = Path(__file__).resolve().parents[3] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_ten_lines_read_a_mask_file(
    tmp_path: Path, people: tuple[Path, list[str]], tiny_parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = MasksConfig(parser=tiny_parser, device="cpu")
    build_masks(Path("masks.h5"), root=people[0], names=people[1], config=config)
    (code,) = blocks("formats/masks.md", "python")
    found: dict[str, Any] = {}
    exec(code, found)
    assert list(found["names"]) == people[1]
    assert found["good"].all()
    assert found["parts"].shape == (40, 4, 16, 8)
    assert 0 <= float(np.min(found["body"])) < float(np.max(found["body"])) <= 1


def test_the_parser_of_ones_own_builds_masks(
    tmp_path: Path, people: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("how-to/own-parser.md", "python")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "parser.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (declared,) = (block for block in blocks("how-to/own-parser.md", "toml") if "entry-points" in block)
    group, points = next(iter(tomllib.loads(declared)["project"]["entry-points"].items()))
    found = [EntryPoint(name, value, group) for name, value in points.items()]
    monkeypatch.setattr(parser_module, "entry_points", lambda group: found if group == found[0].group else [])
    network = torch.nn.Conv2d(3, 20, 4, stride=4)
    torch.save(network.state_dict(), tmp_path / "file.pth")
    config = MasksConfig(parser=f"mine:{tmp_path / 'file.pth'}", device="cpu", flip=True)
    root, names = people
    report = build_masks(tmp_path / "masks.h5", root=root, names=names, config=config)
    assert (report.done, report.failed) == (40, ())
    values = MaskFile.open(tmp_path / "masks.h5").provenance.values
    assert [values[key] for key in ("parser", "parser_version", "label_set", "flip")] == ["mine", "1", "lip-20", True]


def test_the_toml_files_are_what_they_say(tmp_path: Path) -> None:
    grouping, label_set, sidecar = blocks("how-to/own-parser.md", "toml")[:3]
    (tmp_path / "my-parts.toml").write_text(grouping)
    assert load_grouping(str(tmp_path / "my-parts.toml"), load_label_set("lip-20")).absent == ()
    (tmp_path / "uniforms.toml").write_text(label_set)
    assert load_label_set(str(tmp_path / "uniforms.toml")).flipped() == (0, 1, 2, 3, 5, 4, 6)
    (tmp_path / "model.onnx.toml").write_text(sidecar)
    shown = read_sidecar(tmp_path / "model.onnx")
    defaults = Sidecar(label_set="atr-18", height=512, width=512, output="logits")
    assert shown == defaults
    assert set(Sidecar.model_fields) <= set(re.findall(r"^(\w+) =", sidecar, flags=re.MULTILINE))

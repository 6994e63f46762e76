"""The ablation: which runs it asks for, what it makes of their figures, and that it does none of them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import ablation
from benchmarks.ablation import GROUPS, METRICS, Cell, cells_of, configuration, key_of, summary


def test_the_groups_are_those_that_the_paper_and_the_rivals_ask_for() -> None:
    cells = {group: cells_of(group, ("strong",)) for group in GROUPS}
    assert [cell.preset for cell in cells["presets"]] == ["strong", "baseline", "paper"]
    made = {group: [configuration(cell, 3, ()) for cell in each] for group, each in cells.items()}
    assert [run.model.body_attention for run in made["attention"]] == [True, False]
    assert [run.loss.dynamic for run in made["dynamic"]] == [True, False]
    assert [run.loss.balance for run in made["balance"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [run.matching.rule for run in made["matching"]] == ["shrunk", "mean", "sum", "query", "all"]
    runs = [run for each in made.values() for run in each]
    assert {run.train.seed for run in runs} == {3}
    assert {run.name for run in runs} == {"ablation"}, "else nothing would be shared"
    assert len(cells_of("balance", ("paper", "strong"))) == 12


def test_the_rules_differ_in_nothing_that_is_trained() -> None:
    runs = [configuration(cell, 0, ()) for cell in cells_of("matching", ("strong",))]
    assert len({(run.model, run.loss, run.train) for run in runs}) == 1


def test_mean_and_spread_are_over_the_seeds_that_were_run() -> None:
    cell = Cell("presets", "paper", "paper")
    found = {key_of(cell, seed): dict.fromkeys(METRICS, value) for seed, value in ((0, 0.4), (1, 0.6))}
    both = summary(cell, (0, 1, 2), found)
    assert both["seeds"] == 2
    assert both["mAP"] == pytest.approx(0.5)
    assert both["mAP_spread"] == pytest.approx(0.02**0.5)
    assert summary(cell, (0, 2), found)["mAP_spread"] is None
    assert summary(cell, (2,), found)["mAP"] is None


def test_the_table_says_what_was_not_run(tmp_path: Path) -> None:
    cells = [cell for group in GROUPS for cell in cells_of(group, ("strong",))]
    found = {key_of(cell, 0): dict.fromkeys(METRICS, 0.25) for cell in cells if cell.preset != "paper"}
    rows = [summary(cell, (0, 1), found) for cell in cells]
    ablation.write_table(tmp_path / "a.md", rows, {"seeds": "0, 1"})
    text = (tmp_path / "a.md").read_text()
    assert "| paper | 0 | not run | not run | not run | not run |" in text
    assert "| strong, attention off | 1 | 25.0 | 25.0 | 25.0 | 25.0 |" in text
    ablation.draw(tmp_path / "a.png", rows)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800
    ablation.draw(tmp_path / "none.png", [summary(cell, (), {}) for cell in cells])
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_a_second_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        "synth.cameras=2", "synth.shots=2", "synth.jobs=1", "synth.height=64", "synth.width=32",
        "model.part_dim=8", "model.weights=none", "train.identities=3", "train.instances=2",
    ]  # fmt: skip
    arguments = [
        "ablation", "--ids", "8", "--groups", "presets", "matching", "--seeds", "0", "--epochs", "1", "--height", "64",
        "--width", "32", "--amp", "off", "--artifacts", str(tmp_path / "artifacts"), "--out", str(tmp_path / "out"),
        *(word for each in small for word in ("--set", each)),
    ]  # fmt: skip

    def results(*more: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        ablation.main()
        found: dict[str, Any] = json.loads((tmp_path / "out" / "ablation.json").read_text())
        return found

    first = results()
    assert len(first["runs"]) == 8
    assert first["runs"]["presets/strong/0"]["action"] == "ran"
    # The rules of `strong` are measured on the features of the preset's own run.
    assert {first["runs"][f"matching/strong, {rule}/0"]["action"] for rule in ablation.RULES} == {"reused"}
    assert len(list((tmp_path / "artifacts" / "masks").glob("*/masks.h5"))) == 1
    assert first["runs"]["matching/strong, shrunk/0"]["mAP"] == first["runs"]["presets/strong/0"]["mAP"]
    again = results("--minutes", "0")
    assert {run["action"] for run in again["runs"].values()} == {"reused"}
    assert [row["mAP"] for row in again["rows"]] == [row["mAP"] for row in first["rows"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ablation.json", "ablation.md", "ablation.png"}

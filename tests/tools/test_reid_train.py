from __future__ import annotations

import csv
from pathlib import Path

import torch

from pipeline.config_file import load_config
from pipeline.datasets.registry import open_dataset
from pipeline.formats.checkpoint import CheckpointMeta, write_checkpoint
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.network import build_model
from sgsfa_synth.presets import PRESETS
from sgsfa_synth.randomise import varied_identity
from tools.reid.groups import accuracy_by_group, traits
from tools.reid.train import FIRST, SECOND, pack, subset


def test_config__phases_differ_in_size_and_schedule_only() -> None:
    first, second = (load_config(path).model_dump() for path in (FIRST, SECOND))
    assert first["synth"]["randomise"] == PRESETS["transfer"].randomise
    for section in ("synth", "masks", "loss", "extract", "matching"):
        assert first[section] == second[section]
    changed = {key for key in first["model"] if first["model"][key] != second["model"][key]}
    assert changed == {"height", "width"}


def test_subset__keeps_the_first_training_identities_and_all_tests(tmp_path: Path) -> None:
    root = tmp_path / "whole"
    rows = [(f"train/{pid}_{shot}.jpg", pid, shot, "train") for pid in (3, 5, 9) for shot in (1, 2)]
    rows += [("query/1.jpg", 1, 1, "query"), ("gallery/1.jpg", 1, 2, "gallery")]
    for path, *_ in rows:
        for name in (root / path, (root / "labels" / path).with_suffix(".png")):
            name.parent.mkdir(parents=True, exist_ok=True)
            name.touch()
    with (root / "dataset.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "pid", "camid", "split"), *rows])
    dataset = open_dataset(f"synthetic:{subset(root, tmp_path, 2)}")
    assert {record.pid for record in dataset.split("train")} == {3, 5}
    assert len(dataset.split("query")) == len(dataset.split("gallery")) == 1


def test_pack__features_stay_and_classifiers_go(tmp_path: Path) -> None:
    config = load_config(FIRST).model.model_copy(update={"weights": "none", "height": 64, "width": 32})
    network = build_model(config, 7)
    meta = CheckpointMeta(model=config, num_classes=7, thresholds=(0.1,) * 7, identities="someone")
    write_checkpoint(tmp_path / "whole.safetensors", network.state_dict(), meta)
    pack(tmp_path / "whole.safetensors", tmp_path / "small.safetensors")
    small, read = load_checkpoint(tmp_path / "small.safetensors")
    assert (read.num_classes, read.identities) == (1, "")
    assert (tmp_path / "small.safetensors").stat().st_size < 10e6
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected, found = network.eval()(images), small(images)
    torch.testing.assert_close(found.global_feature, expected.global_feature, atol=0.02, rtol=0.02)


def test_groups__every_query_counts_once_per_trait(tmp_path: Path) -> None:
    with (tmp_path / "queries.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "pid", "ap", "first_hit"))
        writer.writerows((f"{pid}.jpg", pid, pid / 20, 1 + pid % 2) for pid in range(1, 21))
    found = accuracy_by_group(tmp_path / "queries.csv", 0)
    for trait in traits(varied_identity(0, 0)):
        members = [group for group in found if group["trait"] == trait]
        assert sum(group["queries"] for group in members) == 20
        assert sum(group["rank1"] * group["queries"] for group in members) == 10
    assert all(group["low"] <= group["mean_ap"] <= group["high"] for group in found)

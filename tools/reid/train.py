"""Train the built-in re-identification network.

`python -m tools.reid.train OUT [--source SPEC] [--identities N] [--test SPEC]... [--set KEY=VALUE]...`

Renders the data set of `first.toml`, unless `--source` names one, trains at 128x64 (`first.toml`) and then at 256x128
(`second.toml`), tests on the rendered test identities and on every `--test`, and writes `builtin.safetensors` (float16,
without identity classifiers) and `figures.json` to OUT. Stages are cached in OUT/artifacts: repeat the
command to resume.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.config_file import load_config
from pipeline.formats.checkpoint import read_checkpoint, write_checkpoint
from pipeline.model.network import build_model
from pipeline.stages.run import RunReport, run_stages
from tools.reid.groups import accuracy_by_group

FIRST, SECOND = (Path(__file__).with_name(name) for name in ("first.toml", "second.toml"))
MODEL = "model.safetensors"


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shared = [f"artifacts={arguments.out / 'artifacts'}", *arguments.set]
    source = arguments.source or f"synthetic:{render(shared)}"
    if arguments.identities:
        source = f"synthetic:{subset(Path(source.split(':', 1)[1]), arguments.out, arguments.identities)}"
    tests = json.dumps([source, *arguments.test])
    shared += [f"data.source={source}", f"data.tests={tests}", "data.expect_counts=false"]

    first = run_stages(load_config(FIRST, overrides=shared), until="train")
    config = load_config(SECOND, overrides=[f"train.start={folder_of(first, 'train') / MODEL}", *shared])
    second = run_stages(config)
    pack(folder_of(second, "train") / MODEL, arguments.out / "builtin.safetensors")
    (arguments.out / "figures.json").write_text(json.dumps(figures(second, config), indent=1) + "\n")


def figures(report: RunReport, config: RunConfig) -> dict[str, Any]:
    """Return the figures of the model card: results of every test set, and accuracy by group of rendered identities."""
    assert report.results is not None
    tests = report.results["tests"]
    rendered = next(iter(tests))
    queries = folder_of(report, "eval") / rendered / "queries.csv"
    return {
        "tests": {name: brief(result) for name, result in tests.items()},
        "groups": accuracy_by_group(queries, config.synth.seed),
        "training": json.loads((folder_of(report, "train") / "training.json").read_text()),
    }


def brief(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a test's result that the model card reports, without CMC curve and camera pairs."""
    found = {key: result[key] for key in ("metrics", "counts", "intervals", "gain", "breakdown")}
    found["metrics"] = {key: value for key, value in found["metrics"].items() if key != "cmc"}
    found["breakdown"] = [row for row in found["breakdown"] if row["by"] != "cameras"]
    rounded: dict[str, Any] = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
    return rounded


def render(overrides: Sequence[str]) -> Path:
    """Render the data set of the configuration and return its folder."""
    report = run_stages(load_config(FIRST, overrides=overrides), until="synth")
    return next(folder_of(report, "synth").rglob("dataset.csv")).parent


def subset(root: Path, out: Path, identities: int) -> Path:
    """Link a rendered data set that has only the first training identities.

    Args:
        root: Folder of the whole data set.
        out: The new folder is created in this one.
        identities: Number of training identities.
    """
    with (root / "dataset.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = set(sorted({int(row["pid"]) for row in rows if row["split"] == "train"})[:identities])
    folder = out / f"rendered-{identities}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "query", "gallery", "labels"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to((root / name).resolve())
    with (folder / "dataset.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["split"] != "train" or int(row["pid"]) in kept)
    return folder


def pack(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint in float16, with classifiers of a single identity in place of the trained ones."""
    weights, meta = read_checkpoint(checkpoint)
    state = without_classifiers(weights, build_model(meta.model, 1))
    half = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    header = replace(meta, num_classes=1, identities="", trained_on="rendered identities", started_from="")
    write_checkpoint(out, half, header)


def without_classifiers(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return `state` with the network's own values wherever the shapes differ."""
    own = network.state_dict()
    return {
        name: state[name] if state[name].shape == value.shape else torch.zeros_like(value)
        for name, value in own.items()
    }


def folder_of(report: RunReport, stage: str) -> Path:
    """Return the artifact folder of a stage."""
    return next(outcome.path for outcome in report.stages if outcome.stage == stage)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", help="rendered data set to train on, as synthetic:FOLDER")
    parser.add_argument("--identities", type=int, help="train on the first N identities only")
    parser.add_argument("--test", action="append", default=[], help="data set to test on, as KIND:PATH")
    parser.add_argument("--set", action="append", default=[], help="override of the configuration, KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

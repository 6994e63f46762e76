"""Measure the effect of each piece of the method: presets, body attention, dynamic features, lambda, matching rules.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --data csv:mine/dataset.csv --height 256 --width 128 --epochs 60 --seeds 0 1 2
    python -m benchmarks.ablation --groups presets balance --set train.lr=4e-4 --minutes 60

Every cell of the table is a run of the stages, so its data, masks, checkpoints, features and results are cached in the
artifact store: cells with the same training train once, masks are built once, matching rules cost no training, and the
same command resumes. After each cell the table (`ablation.md`), all figures (`ablation.json`) and the plot
(`ablation.png`, after the paper's Table 5 and Fig. 6) are updated; cells that were not run yet are marked.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.config import RunConfig
from pipeline.config_file import load_config
from pipeline.runtime.device import device_label, resolve_device
from pipeline.runtime.files import atomic_write, read_json, write_json
from pipeline.stages.plan import make_plan
from pipeline.stages.run import run_stages

RESULTS = Path(__file__).parent / "results" / "ablation"
GROUPS = ("presets", "attention", "matching", "dynamic", "balance")
METRICS = ("rank1", "rank5", "mAP", "mINP")
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RULES = ("shrunk", "mean", "sum", "query", "all")

TITLES = {
    "presets": "Presets",
    "attention": "Body attention (Table 5)",
    "matching": "Matching rules",
    "dynamic": "Choice of spatial features (eq. 3)",
    "balance": "lambda of eq. 11 (Fig. 6)",
}


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        group: Which question it answers.
        label: What is different.
        preset: Where its configuration starts.
        changes: Overrides, as of `--set`.
        value: Its place on the group's axis, where that is a number.
    """

    group: str
    label: str
    preset: str
    changes: tuple[str, ...] = ()
    value: float | None = None


def cells_of(group: str, bases: Sequence[str]) -> tuple[Cell, ...]:
    """The lines of a group; `bases` are the SGSFA presets whose pieces are taken away one at a time."""
    if group == "presets":
        return tuple(Cell(group, preset, preset) for preset in ("strong", "baseline", "paper"))
    made: list[Cell] = []
    for base in bases:
        if group == "attention":
            made += [
                Cell(group, f"{base}, attention {word}", base, (f"model.body_attention={value}",))
                for word, value in (("on", "true"), ("off", "false"))
            ]
        elif group == "dynamic":
            made += [
                Cell(group, f"{base}, {word}", base, (f"loss.dynamic={value}",))
                for word, value in (("chosen by eq. 3", "true"), ("always all five", "false"))
            ]
        elif group == "matching":
            made += [Cell(group, f"{base}, {rule}", base, (f"matching.rule={rule}",)) for rule in RULES]
        else:
            made += [Cell(group, f"{base}, {value:.1f}", base, (f"loss.balance={value}",), value) for value in LAMBDAS]
    return tuple(made)


def configuration(cell: Cell, seed: int, common: Sequence[str]) -> RunConfig:
    """The run of a cell. All runs have the same name, so that they share what is the same for them."""
    overrides = ["name=ablation", *common, f"train.seed={seed}", *cell.changes]
    return load_config(preset=cell.preset, overrides=overrides)


def run_cell(config: RunConfig) -> dict[str, Any]:
    """Run what is missing of a cell, and read its figures.

    Returns:
        Metrics in [0, 1], processor and wall seconds of this session, and what the training said of itself.
    """
    begun, processor = time.monotonic(), time.process_time()
    report = run_stages(config)
    assert report.results is not None
    (result,) = report.results["tests"].values()
    trained = next(outcome for outcome in report.stages if outcome.stage == "train")
    training = read_json(trained.path / "training.json")
    return {
        **{name: result["metrics"][name] for name in METRICS},
        "queries": result["metrics"]["num_valid_queries"],
        "test_set": result["test_set"],
        "rule": result["protocol"]["rule"],
        "train": trained.path.as_posix(),
        "action": trained.action,
        "session_seconds": round(time.monotonic() - begun, 1),
        "session_processor_seconds": round(time.process_time() - processor, 1),
        "training": {
            key: training[key]
            for key in ("images", "identities", "without_mask", "epochs", "steps", "seconds", "thresholds")
        },
        "visibility_accuracy": training["visibility_accuracy"],
    }


def is_trained(config: RunConfig) -> bool:
    """Whether the cell needs no training any more."""
    return all(entry.state == "up to date" for entry in make_plan(config, until="train").selected)


def key_of(cell: Cell, seed: int) -> str:
    return f"{cell.group}/{cell.label}/{seed}"


def summary(cell: Cell, seeds: Sequence[int], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of a cell over the seeds that were run."""
    runs = [found[key_of(cell, seed)] for seed in seeds if key_of(cell, seed) in found]
    made: dict[str, Any] = {**asdict(cell), "seeds": len(runs)}
    for name in METRICS:
        values = [run[name] for run in runs]
        made[name] = statistics.mean(values) if values else None
        made[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
    return made


def write_table(path: Path, rows: Sequence[dict[str, Any]], conditions: dict[str, Any]) -> None:
    """The Markdown table, a section a group."""

    def figure(row: dict[str, Any], name: str) -> str:
        if row[name] is None:
            return "not run"
        spread = row[f"{name}_spread"]
        return f"{100 * row[name]:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")

    lines = ["# Ablations", "", *(f"* {key}: {value}" for key, value in conditions.items()), ""]
    lines += ["Figures in %: mean over the seeds that were run, ± their standard deviation.", ""]
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [f"## {TITLES[group]}", "", "| | seeds | rank-1 | rank-5 | mAP | mINP |", "| --- " * 6 + "|"]
        for row in (row for row in rows if row["group"] == group):
            lines.append(f"| {row['label']} | {row['seeds']} | " + " | ".join(figure(row, m) for m in METRICS) + " |")
        lines.append("")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Bars for the pieces that are on or off, lines over lambda; cells that were not run have no mark."""
    groups = [group for group in GROUPS if any(row["group"] == group and row["seeds"] for row in rows)]
    if not groups:
        return
    figure = Figure(figsize=(6.2 * min(2, len(groups)), 3.6 * -(-len(groups) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(groups) // 2), min(2, len(groups)), squeeze=False).flat
    for group, axes in zip(groups, panels, strict=False):
        own = [row for row in rows if row["group"] == group and row["seeds"]]
        (_lines if group == "balance" else _bars)(axes, own)
        axes.set_title(TITLES[group])
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(fontsize="small")
    for axes in list(panels):
        axes.set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for offset, name, label in ((-0.2, "rank1", "rank-1"), (0.2, "mAP", "mAP")):
        places = [place + offset for place in range(len(rows))]
        bars = axes.barh(places, [100 * row[name] for row in rows], 0.38, label=label, xerr=_spreads(rows, name))
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=3)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("%")


def _lines(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for preset in dict.fromkeys(row["preset"] for row in rows):
        own = [row for row in rows if row["preset"] == preset]
        for name, label, style in (("rank1", "rank-1", "-o"), ("mAP", "mAP", "--s")):
            axes.errorbar(
                [row["value"] for row in own],
                [100 * row[name] for row in own],
                _spreads(own, name),
                fmt=style,
                capsize=3,
                label=f"{preset}, {label}",
            )
    axes.set_xlabel("lambda")
    axes.set_ylabel("%")
    axes.set_xticks(LAMBDAS)


def _spreads(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [100 * (row[f"{name}_spread"] or 0.0) for row in rows]


def common_settings(arguments: argparse.Namespace) -> list[str]:
    """What is the same for all runs, as overrides; the user's own come last and win."""
    named = {
        "artifacts": json.dumps(str(arguments.artifacts)),
        "data.source": json.dumps(arguments.data),
        "synth.ids": arguments.ids,
        "model.backbone": json.dumps(arguments.backbone),
        "model.weights": json.dumps(arguments.weights),
        "model.height": arguments.height,
        "model.width": arguments.width,
        "train.epochs": arguments.epochs,
        "train.amp": json.dumps(arguments.amp),
        "extract.amp": json.dumps(arguments.amp),
        "masks.device": json.dumps(arguments.device),
        "train.device": json.dumps(arguments.device),
        "extract.device": json.dumps(arguments.device),
        "matching.figures": 0,
    }
    return [f"{key}={value}" for key, value in named.items()] + list(arguments.set)


def conditions_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the table must know."""
    return {
        "settings": ", ".join(common_settings(arguments)[1:]),
        "seeds": ", ".join(map(str, arguments.seeds)),
        "device": f"{device_label(resolve_device(arguments.device))}, {torch.get_num_threads()} thread(s)",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    logging.basicConfig(format="    %(message)s", level=logging.INFO)
    arguments = parse()
    cells = [cell for group in arguments.groups for cell in cells_of(group, arguments.bases)]
    common = common_settings(arguments)
    if len(configuration(cells[0], 0, common).data.tests) > 1:
        raise SystemExit("the table has one test set; name one in data.tests, or none")
    found: dict[str, dict[str, Any]] = {}
    begun = time.monotonic()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    # Seed by seed within a group: a table that is cut short has all its lines before it has their spread.
    order = [
        (cell, seed) for group in arguments.groups for seed in arguments.seeds for cell in cells if cell.group == group
    ]
    if arguments.list:
        for cell, seed in order:
            config = configuration(cell, seed, common)
            print(f"{key_of(cell, seed)}: {'trained' if is_trained(config) else 'to be trained'}")
        return
    # What is trained already is read before anything is written, so that the table never holds less than it did.
    order.sort(key=lambda each: not is_trained(configuration(*each, common)))
    ready = sum(is_trained(configuration(*each, common)) for each in order)
    for number, (cell, seed) in enumerate(order, 1):
        config = configuration(cell, seed, common)
        late = arguments.minutes is not None and (time.monotonic() - begun) / 60 > arguments.minutes
        if late and not is_trained(config):
            print(f"[{number}/{len(order)}] {key_of(cell, seed)}: not begun, the time is over")
            continue
        print(f"[{number}/{len(order)}] {key_of(cell, seed)}", flush=True)
        one = run_cell(config)
        found[key_of(cell, seed)] = one
        print(f"    rank-1 {one['rank1']:.1%}, mAP {one['mAP']:.1%}, {one['session_seconds']:.0f} s", flush=True)
        if number < ready:
            continue
        rows = [summary(each, arguments.seeds, found) for each in cells]
        conditions = conditions_of(arguments)
        write_json(out / "ablation.json", {"conditions": conditions, "rows": rows, "runs": found})
        write_table(out / "ablation.md", rows, conditions)
        draw(out / "ablation.png", rows)
    print(f"written to {out}: ablation.json, ablation.md, ablation.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="rendered", help="KIND:PATH, or rendered")
    parser.add_argument("--ids", type=int, default=200, help="rendered people, half of them to train on")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--bases", nargs="+", default=["strong"], choices=("paper", "strong"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="builtin", help="where the backbone starts; builtin needs no download")
    parser.add_argument("--amp", default="bf16", choices=("off", "bf16", "fp16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--minutes", type=float, help="begin no further training after so many")
    parser.add_argument("--list", action="store_true", help="say which cells are trained, and do nothing")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table and the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()

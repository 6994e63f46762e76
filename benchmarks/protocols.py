"""Train and test many configurations under one protocol: `python -m benchmarks.protocols --suite NAME --data ...`.

A suite (`benchmarks/suites/NAME.toml`) names training and test sets, settings that all its cells share, seeds, and the
cells: each a preset with overrides, and optionally a second stage (`then`) that continues from its checkpoint. All
cells of a suite have the same budget, only the last epoch is tested, and no test set decides anything. Masks are built
once per training set. Workers share the device; each finished cell is one line of a JSON Lines file, so that the same
command resumes where an interrupted one stopped. At the end the finished cells become `benchmarks/results/NAME.json`,
with the suite's columns, and `python -m benchmarks.report` adds them to the results page.

    python -m benchmarks.protocols --suite market-recipe --data market=csv:dev_split.csv \
        --data occluded-market=csv:occluded/dataset.csv --workers 4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Column, Result, Row, environment
from benchmarks.scoring import score
from pipeline.config import MasksConfig, RunConfig
from pipeline.config_file import load_config
from pipeline.datasets.registry import open_dataset
from pipeline.masks.build import build_masks
from pipeline.runtime.device import device_label, resolve_device
from pipeline.runtime.progress import SILENT
from pipeline.stages.train import open_teacher
from pipeline.training.context import TeacherData
from pipeline.training.report import MODEL_FILE
from pipeline.training.run import train

SUITES = Path(__file__).with_name("suites")
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Cell:
    """One training and its tests.

    Attributes:
        name: What is different about it.
        preset: Where its configuration starts.
        set: Overrides, as of `--set`.
        then: Overrides of a second training that starts from the first one's checkpoint; None: no second training.
        train: Name of the training set.
        tests: Names of the test sets.
        seed: Seed of the training.
    """

    name: str
    preset: str
    set: tuple[str, ...]
    then: tuple[str, ...] | None
    train: str
    tests: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Name of its line in the results."""
        return f"{self.name} | {self.train} | {self.seed}"


@dataclass(frozen=True)
class Suite:
    """A suite's file; see `read_suite`.

    Attributes:
        cells: In the order they run.
        columns: Heading of each column of the result, with the dotted key of its figure: "market.shrunk.mAP".
        result: Fields of `benchmarks.report.Result` that the file states: question, data, schedule, findings ...
    """

    cells: tuple[Cell, ...]
    columns: Mapping[str, str]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class RunOptions:
    """Data, files and limits of a run.

    Attributes:
        data: Data set of each name, KIND:PATH.
        work: Folder of masks and trainings.
        lines: Results of finished cells, one JSON object per line.
        device: Device of training and tests.
        stop: No cell starts when it is likely to end after this `time.time()`.
        typical: Seconds that a cell is expected to take before any has finished.
    """

    data: Mapping[str, str]
    work: Path
    lines: Path
    device: str
    stop: float
    typical: float


def read_suite(path: Path) -> Suite:
    """Read a suite: cells in the order of the file, all of the first seed before those of the next.

    A cell may have `seeds`, `train` and `tests` of its own instead of the suite's.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    common = tuple(table.get("common", ()))
    cells: list[Cell] = []
    for entry in table["cells"]:
        values = {**table, **entry}
        second = values.get("then")
        cells += [
            Cell(
                name=values["name"],
                preset=values["preset"],
                set=(*common, *values.get("set", ())),
                then=None if second is None else tuple(second),
                train=train_set,
                tests=tuple(values["tests"]),
                seed=seed,
            )
            for train_set in values["train"]
            for seed in values["seeds"]
        ]
    first = min(cell.seed for cell in cells)
    cells.sort(key=lambda cell: cell.seed != first)
    return Suite(tuple(cells), table["columns"], table["result"])


def stages_of(cell: Cell, device: str) -> Iterator[tuple[str, RunConfig]]:
    """Configurations of a cell's trainings, by name."""
    common = (f"train.seed={cell.seed}", f"train.device={device}")
    yield "first", load_config(preset=cell.preset, overrides=(*cell.set, *common))
    if cell.then is not None:
        yield "second", load_config(preset=cell.preset, overrides=(*cell.set, *cell.then, *common))


def run_cell(cell: Cell, options: RunOptions) -> dict[str, Any]:
    """Train and test a cell."""
    dataset = open_dataset(options.data[cell.train], expect_counts=False)
    folder = options.work / "cells" / "".join(c if c.isalnum() else "-" for c in cell.key)
    line: dict[str, Any] = {"key": cell.key, **asdict(cell)}
    checkpoint: Path | None = None
    for stage, config in stages_of(cell, options.device):
        start = time.monotonic()
        training = config.train.model_copy(update={"start": checkpoint})
        report = train(
            folder / stage,
            dataset=dataset,
            masks=masks_path(options, cell.train),
            model=config.model,
            loss=config.loss,
            config=training,
            teacher=mask_teacher(config, options),
        )
        trained = time.monotonic()
        checkpoint = folder / stage / MODEL_FILE
        tested = {
            name: score(
                checkpoint, open_dataset(options.data[name], expect_counts=False), resolve_device(options.device)
            )
            for name in cell.tests
        }
        line[stage] = {
            "steps": report.steps,
            "images_per_second": report.images_per_second,
            "train_seconds": round(trained - start, 1),
            "test_seconds": round(time.monotonic() - trained, 1),
            "thresholds": [round(threshold, 4) for threshold in report.thresholds],
            "training_visibility_auc": {part: round(area, 3) for part, area in report.visibility_auc.items()},
            "tests": tested,
        }
    return line


def mask_teacher(config: RunConfig, options: RunOptions) -> TeacherData | None:
    """Rendered images that teach masks; `train.teacher_data` may be a name of `--data`."""
    if config.teacher_spec is None:
        return None
    spec = options.data.get(config.teacher_spec, config.teacher_spec)
    return open_teacher(open_dataset(spec, expect_counts=False), config.masks.grouping, SILENT)


def masks_path(options: RunOptions, name: str) -> Path:
    """Mask file of a data set's training images."""
    return options.work / f"masks-{name}.h5"


def build_all_masks(cells: Sequence[Cell], options: RunOptions) -> None:
    """Build the missing masks of all training sets, from true label maps where there are any."""
    for name in dict.fromkeys(cell.train for cell in cells):
        if not masks_path(options, name).is_file():
            dataset = open_dataset(options.data[name], expect_counts=False)
            names = [record.path for record in dataset.split("train")]
            parser = "builtin" if dataset.label_maps is None else "label-maps"
            build_masks(
                masks_path(options, name),
                root=dataset.root,
                names=names,
                config=MasksConfig(parser=parser, device=options.device),
                label_maps=dataset.label_maps,
            )


def run_worker(
    pending: multiprocessing.Queue[Cell], results: multiprocessing.Queue[dict[str, Any]], options: RunOptions
) -> None:
    """Run cells until none is left or the time is over."""
    torch.set_num_threads(1 if options.device == "cpu" else 2)
    seconds: list[float] = []
    while time.time() + max(seconds, default=options.typical) < options.stop:
        try:
            cell = pending.get(timeout=0.5)
        except queue.Empty:
            break
        start = time.time()
        try:
            line = run_cell(cell, options)
        except Exception as error:  # One cell that fails must not cost the others.
            line = {"key": cell.key, "error": f"{type(error).__name__}: {error}"}
        seconds.append(time.time() - start)
        results.put({**line, "seconds": round(seconds[-1], 1)})


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of finished cells by key."""
    if not path.is_file():
        return {}
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]
    return {line["key"]: line for line in lines if "error" not in line}


def run_suite(cells: Sequence[Cell], options: RunOptions, workers: int) -> None:
    """Run the cells that are not finished, in several processes."""
    options.work.mkdir(parents=True, exist_ok=True)
    build_all_masks(cells, options)
    context = multiprocessing.get_context("spawn")
    pending, results = context.Queue(), context.Queue()
    already_finished = finished(options.lines)
    for cell in cells:
        if cell.key not in already_finished:
            pending.put(cell)
    processes = [context.Process(target=run_worker, args=(pending, results, options)) for _ in range(workers)]
    for process in processes:
        process.start()
    with options.lines.open("a", encoding="utf-8") as file:
        while any(process.is_alive() for process in processes) or not results.empty():
            try:
                line = results.get(timeout=0.5)
            except queue.Empty:
                continue
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps({key: line.get(key) for key in ("key", "error", "seconds")}), flush=True)
    for process in processes:
        process.join()


def result_of(suite: Suite, lines: Mapping[str, Mapping[str, Any]], device: str, command: str) -> Result:
    """Return the table of the finished cells: one row per cell and training set, a value per seed."""
    trained_on: dict[str, set[str]] = {}
    for cell in suite.cells:
        trained_on.setdefault(cell.name, set()).add(cell.train)
    groups: dict[str, list[Cell]] = {}
    for cell in suite.cells:
        if cell.key in lines:
            name = f"{cell.name}, {cell.train}" if len(trained_on[cell.name]) > 1 else cell.name
            groups.setdefault(name, []).append(cell)
    rows = []
    for name, cells in groups.items():
        tests = [lines[cell.key]["second" if cell.then is not None else "first"]["tests"] for cell in cells]
        figures = {key: [figure_at(seed_tests, key) for seed_tests in tests] for key in suite.columns.values()}
        values = {key: [v for v in per_seed if v is not None] or None for key, per_seed in figures.items()}
        rows.append(Row(name=name, values=values))
    return Result(
        **suite.result,
        seeds=sorted({cell.seed for cells in groups.values() for cell in cells}),
        device=device_label(resolve_device(device)),
        versions=environment(),
        date=time.strftime("%Y-%m"),
        command=command,
        columns=[Column(key=key, label=label) for label, key in suite.columns.items()],
        rows=rows,
    )


def figure_at(tests: Mapping[str, Any], dotted_key: str) -> float | None:
    """Return the figure at a dotted key, None where a network has none (visibilities of a baseline)."""
    value: Any = tests
    for key in dotted_key.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else round(float(value), 3)


def main() -> None:
    arguments = parse()
    path = Path(arguments.suite)
    if path.suffix != ".toml":
        path = SUITES / f"{arguments.suite}.toml"
    suite = read_suite(path)
    out: Path = arguments.out or RESULTS / f"{path.stem}.json"
    options = RunOptions(
        data=dict(entry.split("=", 1) for entry in arguments.data),
        work=arguments.work,
        lines=arguments.lines or arguments.work / f"{path.stem}.jsonl",
        device=arguments.device,
        stop=time.time() + arguments.seconds,
        typical=arguments.typical,
    )
    run_suite(suite.cells[: arguments.first], options, arguments.workers)
    data = " ".join(f"--data {entry.split('=')[0]}=KIND:PATH" for entry in arguments.data)
    command = f"python -m benchmarks.protocols --suite {path.stem} {data}"
    result_of(suite, finished(options.lines), arguments.device, command).save(out)
    print(f"written: {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, help="name in benchmarks/suites, or a TOML file")
    parser.add_argument("--data", action="append", required=True, metavar="NAME=KIND:PATH", help="data set of a name")
    parser.add_argument("--work", type=Path, default=Path("artifacts/protocols"))
    parser.add_argument("--lines", type=Path, help="JSON Lines of finished cells; default: in --work")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/SUITE.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell that would end later")
    parser.add_argument("--typical", type=float, default=60.0, help="expected seconds of the first cell")
    parser.add_argument("--first", type=int, help="only so many cells of the suite")
    return parser.parse_args()


if __name__ == "__main__":
    main()

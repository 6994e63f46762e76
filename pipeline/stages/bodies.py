"""The bodies of the stages: each hands its inputs to the package that does the work.

The packages are imported where they are used: planning a run, or finding that nothing is to be done, must not wait for
PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import RunConfig
from pipeline.errors import FormatError, Rejected, UserError, WeightsError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.process_group import rank_info
from pipeline.stages.sources import RENDERED, SYNTH_FOLDER, Sources, TestSet
from pipeline.stages.stage import StageContext, StageReport

R = TypeVar("R")

MASKS_FILE = "masks.h5"
CHECKPOINT = "model.safetensors"
FEATURES_FILE = "features.h5"
RESULT = "result.json"


def synth(context: StageContext) -> StageReport:
    """Render people."""
    from sgsfa_synth.dataset import render_dataset

    # A folder of its own, because the renderer refuses one that holds anything it does not know.
    render_dataset(context.out / SYNTH_FOLDER, context.config.synth, progress=context.progress)
    return StageReport()


def masks(context: StageContext) -> StageReport:
    """Build the part masks of the training images."""
    from pipeline.datasets.records import unique_names
    from pipeline.masks.build import build_masks

    dataset = context.sources.training()
    work = functools.partial(
        build_masks,
        context.out / MASKS_FILE,
        root=dataset.root,
        names=unique_names(dataset.split("train")),
        config=context.config.masks,
        label_maps=dataset.label_maps,
        progress=context.progress,
    )
    report = _going_on(context, work)
    figures = {"images_per_second": report.images_per_second}
    return StageReport(total=report.total, rejected=report.failed, figures=figures)


def train(context: StageContext) -> StageReport:
    """Train the network."""
    from pipeline.training.run import train as run_training

    config, sources = context.config, context.sources
    work = functools.partial(
        run_training,
        context.out,
        dataset=sources.training(),
        masks=_mask_file(config, sources),
        model=config.model,
        loss=config.loss,
        config=config.train,
        tests=[sources.open(test.spec) for test in sources.tests()] if config.train.eval_every else (),
        progress=context.progress,
    )
    report = _going_on(context, work)
    figures = {"images_per_second": report.images_per_second, "train_seconds": report.seconds}
    return StageReport(total=report.images + len(report.failed), rejected=report.failed, figures=figures)


def extract(context: StageContext) -> StageReport:
    """Compute the features of every test set: `<test>/features.h5`."""
    from pipeline.features.extract import extract as run_extraction

    config, sources = context.config, context.sources
    checkpoint = config.extract.checkpoint or sources.folder("train") / CHECKPOINT
    rejected: list[Rejected] = []
    total = 0
    rates = {}
    tests = sources.tests()
    for test in tests:
        records = sources.test_records(test.spec)
        folder = context.out / test.name
        folder.mkdir(exist_ok=True)
        work = functools.partial(
            run_extraction,
            folder / FEATURES_FILE,
            dataset=sources.open(test.spec),
            records=records,
            checkpoint=checkpoint,
            config=config.extract,
            progress=context.progress,
        )
        report = _going_on(context, work)
        # Two data sets may use the same names.
        rejected += (
            report.failed
            if len(tests) == 1
            else [Rejected(f"{test.name}: {each.path}", each.reason) for each in report.failed]
        )
        total += report.total
        rates[test.name] = report.images_per_second
    return StageReport(total=total, rejected=tuple(rejected), figures={"images_per_second": rates})


def evaluate(context: StageContext) -> StageReport:
    """Rank and measure: a folder for each test set, and all results in one `result.json`."""
    from pipeline.evaluation.evaluate import evaluate as run_evaluation
    from pipeline.evaluation.result import COLUMNS

    config, sources = context.config, context.sources
    results: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = []
    for name, features, spec in _evaluations(config, sources):
        folder = context.out / name
        folder.mkdir(exist_ok=True)
        found = run_evaluation(
            folder,
            features=features,
            dataset=None if spec is None else sources.open(spec),
            config=config.matching,
            progress=context.progress,
        )
        results[name] = read_json(folder / RESULT)
        rows += found.table_rows()
    # The table goes with the figures, so that showing them again needs none of the code that made them.
    write_json(context.out / RESULT, {"columns": COLUMNS, "rows": rows, "tests": results})
    return StageReport()


def _going_on(context: StageContext, work: Callable[[], R]) -> R:
    """Do the work of a stage; a file of an earlier session that it refuses to go on with is begun anew.

    The fingerprint vouches that the earlier session was to make the same thing. So its file is damaged, of another
    version of sgsfa, or differs in something of no account, and nobody should have to find and delete it by hand.
    """
    try:
        return work()
    except (FormatError, WeightsError) as error:
        if not _clear(context.out, error):
            raise
        if rank_info().world_size > 1:
            # The other processes have ended by now, with the same error.
            raise type(error)(
                error.message, where=error.where, hint="it was removed: run the same command again"
            ) from error
        context.progress.note(f"{error.message}; {error.where} is begun anew")
    return work()


def _clear(out: Path, error: UserError) -> bool:
    """Remove the file of this stage that an error is about, if it is about one."""
    where = Path(error.where or "")
    if not where.is_file() or not where.resolve().is_relative_to(out.resolve()):
        return False
    where.unlink()
    return True


def sole_test(config: RunConfig, sources: Sources) -> TestSet | None:
    """The data set that a features file of the user's belongs to, where the configuration names exactly one.

    Rendered people are the default source, so they say nothing about where such a file comes from.
    """
    specs = config.data.tests or (config.data.source,)
    return sources.tests()[0] if len(specs) == 1 and specs[0] != RENDERED else None


def _evaluations(config: RunConfig, sources: Sources) -> list[tuple[str, Path, str | None]]:
    """Name, features file and data set of each evaluation."""
    if config.matching.features is not None:
        test = sole_test(config, sources)
        name = config.matching.features.stem if test is None else test.name
        return [(name, config.matching.features, None if test is None else test.spec)]
    root = sources.folder("extract")
    return [(test.name, root / test.name / FEATURES_FILE, test.spec) for test in sources.tests()]


def _mask_file(config: RunConfig, sources: Sources) -> Path | None:
    if config.model.kind == "baseline":
        return None
    return config.masks.file or sources.folder("masks") / MASKS_FILE

"""The report page of an evaluation: what the evaluation, the checkpoint and the training know, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import ExtractConfig, MatchingConfig, RunConfig
from pipeline.evaluation.report import QUERIES
from pipeline.formats.checkpoint import read_meta, resolve_checkpoint
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.progress import SILENT, Progress
from pipeline.stages.train import CHECKPOINT

if TYPE_CHECKING:
    from pipeline.datasets.records import Dataset
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.evaluation.report.model import Report

REPORT_FILE = "report.html"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A test set of a report: its features file, its images (None: no thumbnails) and its evaluation (None: done now).

    `name` is that in the run; empty: that of the evaluation.
    """

    features: Path
    dataset: Dataset | None = None
    evaluation: Evaluation | None = None
    name: str = ""

    def evaluated(self, config: MatchingConfig, progress: Progress) -> Evaluation:
        """Return the evaluation under the name of the test set."""
        from pipeline.evaluation.evaluate import evaluate

        found = self.evaluation or evaluate(self.features, dataset=self.dataset, config=config, progress=progress)
        # Two data sets may have one name; a run names them apart.
        return replace(found, result=replace(found.result, test_set=self.name)) if self.name else found


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Choices of a report.

    Attributes:
        against: An earlier result, its folder or `result.json`, to compare with.
        queries: Queries to store per test set: the worst half by AP, the rest spread over all others.
        images: Store thumbnails and masks; off for places where people must not be shown.
    """

    against: Path | None = None
    queries: int = QUERIES
    images: bool = True


def build_report(
    tests: Sequence[Evaluated],
    *,
    config: MatchingConfig,
    checkpoint: Path | None = None,
    training: Path | None = None,
    options: ReportOptions | None = None,
    title: str = "Evaluation",
    progress: Progress = SILENT,
) -> Report:
    """Build the report of one or more test sets.

    Without `checkpoint`, of the network that extracted the features, there are no part masks; `training`, the
    `metrics.jsonl` of its training, gives curves.

    Raises:
        FormatError: A features file or the earlier result cannot be used.
        DataError: There is no query, no gallery, or no query with a match.
        WeightsError: The checkpoint is missing or damaged.
    """
    from pipeline.evaluation.comparison import compare_all, load_queries
    from pipeline.evaluation.report.collect import ReportInput, collect
    from pipeline.features.embedder import Embedder
    from pipeline.formats.features import Features
    from pipeline.matching.distance import MatchingRule
    from pipeline.runtime.device import resolve_device

    options = options or ReportOptions()
    # Before the evaluations, so that a wrong path costs nothing.
    before = {} if options.against is None else load_queries(options.against)
    meta = None if checkpoint is None else read_meta(resolve_checkpoint(checkpoint))
    visibility = {
        name.removeprefix("visibility_").replace("auc", "ROC AUC"): value
        for name, value in (meta.figures.items() if meta else ())
        if name.startswith("visibility_") and isinstance(value, Mapping)
    }
    masks = None
    if options.images and checkpoint is not None and meta is not None and meta.model.kind != "baseline":
        masks = Embedder.load(checkpoint, ExtractConfig(device=config.device)).part_masks
    inputs = [
        ReportInput(
            evaluation=test.evaluated(config, progress),
            features=Features.load(test.features),
            rule=MatchingRule.from_config(config),
            dataset=test.dataset,
            visibility=visibility,
            training=training,
            device=resolve_device(config.device),
        )
        for test in tests
    ]
    if options.against is not None:
        tables = {one.evaluation.result.test_set: one.evaluation.queries for one in inputs}
        found = {one.test_set: one for one in compare_all(tables, before, options.against)}
        inputs = [replace(one, comparison=found.get(one.evaluation.result.test_set)) for one in inputs]
    changed = [name for name, on in (("re-ranking", config.rerank), ("query expansion", config.query_expansion)) if on]
    notice = f"Metrics include {' and '.join(changed)}; the rankings, failure groups and distances do not."
    with memory_advice("extract", ExtractConfig(device=config.device)):
        return collect(
            inputs,
            title=title,
            queries=options.queries,
            images=options.images,
            masks=masks,
            notices=[notice] if changed else [],
            progress=progress,
        )


def report_of_run(config: RunConfig, *, options: ReportOptions | None = None, progress: Progress = SILENT) -> Report:
    """Build the report of a run that is up to date. See `build_report` for arguments and errors.

    Raises:
        ArtifactError: A stage before `eval` is not up to date.
    """
    from pipeline.stages.evaluate import Evaluate
    from pipeline.stages.plan import make_plan

    sources = make_plan(config, from_stage="eval", until="eval").sources
    tests = Evaluate(config, sources).evaluations()
    return report_of_tests(tests, config, sources.folders.get("train"), options=options, progress=progress)


def report_of_tests(
    tests: Sequence[Evaluated],
    config: RunConfig,
    folder: Path | None,
    *,
    options: ReportOptions | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Build the report of the test sets of a run; `folder` is that of its stage `train`, None without one."""
    checkpoint, training = None, None
    if config.matching.features is None and config.extract.checkpoint is not None:
        checkpoint = config.extract.checkpoint
    elif config.matching.features is None and folder is not None:
        checkpoint, metrics = folder / CHECKPOINT, folder / METRICS_FILE
        training = metrics if metrics.is_file() else None
    return build_report(
        tests,
        config=config.matching,
        checkpoint=checkpoint,
        training=training,
        options=options,
        title=f"Evaluation of {config.name}",
        progress=progress,
    )

"""From a features file to metrics, breakdowns and pictures."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import MatchingConfig
from pipeline.datasets.records import Dataset
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.histogram import HistogramBaseline, histogram_baseline
from pipeline.evaluation.pictures import RankedQuery, draw_sheets
from pipeline.evaluation.queries import QueryTable
from pipeline.evaluation.result import RANKS, EvalResult
from pipeline.formats.features import FeatureFile, FeatureRows
from pipeline.matching import breakdown
from pipeline.matching.distance import PartSet, Rule, distance_blocks, distance_matrix, part_set, prepare
from pipeline.matching.intervals import Interval, bootstrap_mean
from pipeline.matching.metrics import Ranking, RankMetrics, RankStream, Relatives
from pipeline.matching.rerank import expand_queries, k_reciprocal
from pipeline.matching.search import rank_on_disk
from pipeline.matching.verification import Verification, VerificationStream
from pipeline.parts import PARTS
from pipeline.runtime.device import resolve_device
from pipeline.runtime.files import write_json
from pipeline.runtime.progress import SILENT, Progress
from pipeline.version import __version__

RESULT_FILE = "result.json"
QUERIES_FILE = "queries.csv"

MEMORY_BYTES = 4 * 2**30
"""Gallery features above this are streamed from the file instead of being held."""

_SHOWN = 10

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A result, its single queries, and the rankings chosen for pictures."""

    result: EvalResult
    queries: QueryTable
    shown: tuple[RankedQuery, ...]


@dataclass(frozen=True, slots=True)
class _Sides:
    """Query and gallery of a features file; `gallery` is None where it is streamed from the file."""

    file: FeatureFile
    query_rows: Ints
    gallery_rows: Ints
    pids: Ints
    camids: Ints
    query: PartSet
    gallery: PartSet | None
    visible: npt.NDArray[np.bool_]
    dropped: int

    @property
    def ids(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Query and gallery identities, query and gallery cameras."""
        q, g = self.query_rows, self.gallery_rows
        return self.pids[q], self.pids[g], self.camids[q], self.camids[g]


def evaluate(
    out: Path,
    *,
    features: Path,
    dataset: Dataset | None,
    config: MatchingConfig,
    progress: Progress = SILENT,
) -> EvalResult:
    """Evaluate a features file and write `result.json`, `queries.csv` and ranking sheets.

    Args:
        out: Folder to write to; made if it is missing.
        features: The file, with rows of the splits `query` and `gallery`.
        dataset: The images, for pictures, the histogram baseline and the visible fractions; None: without those.
        config: Rule, re-ranking and what else to compute.
        progress: Told of each step.

    Raises:
        FormatError: The features file cannot be used.
        DataError: There is no query, no gallery, or no query with a match.
        ConfigError: The options contradict each other.
        ImageError: An image for the pictures or the histograms cannot be read.
    """
    return write(out, measure(features, dataset=dataset, config=config, progress=progress), dataset)


def write(out: Path, found: Evaluation, dataset: Dataset | None) -> EvalResult:
    """Write an evaluation into a folder; the result then names its pictures. See `evaluate`."""
    out.mkdir(parents=True, exist_ok=True)
    sheets: tuple[str, ...] = ()
    if dataset is not None and found.shown:
        sheets = draw_sheets(out, dataset.root, found.shown)
    result = replace(found.result, pictures=sheets)
    found.queries.write(out / QUERIES_FILE)
    write_json(out / RESULT_FILE, result.as_json())
    return result


def measure(
    features: Path, *, dataset: Dataset | None = None, config: MatchingConfig, progress: Progress = SILENT
) -> Evaluation:
    """Evaluate a features file without writing anything. See `evaluate`."""
    rule = rule_of(config)
    sides = _read(features, config)
    notes = [str(note) for note in sides.file.attributes.get("notes", ())] if dataset is None else list(dataset.notes)
    if sides.dropped:
        notes.append(f"{sides.dropped} images without an identity (-1) left out")

    reranked = None
    if sides.gallery is not None:
        if config.query_expansion:
            sides = replace(
                sides, query=expand_queries(sides.query, sides.gallery, rule=rule, k=config.query_expansion)
            )
        ranking, verification = _rank_in_memory(sides, rule, config, progress)
        if config.rerank:
            reranked = _rerank(sides, rule, config)
    else:
        _refuse_in_streaming(config, features)
        verification = None
        ranking = rank_on_disk(
            sides.query,
            sides.ids[0],
            sides.ids[2],
            sides.file,
            rule=rule,
            visibility=config.visibility,
            rows=sides.gallery_rows,
            progress=progress,
        )
    plain = ranking.metrics(config.max_rank, config.average_precision)
    final = ranking
    if reranked is not None:
        stream = RankStream(*sides.ids)
        stream.update(reranked)
        final = stream.ranking()
    metrics = final.metrics(config.max_rank, config.average_precision)

    fraction, fraction_from = _visible_fraction(sides, dataset)
    ignored = _without_visibility(sides, rule, config, progress) if config.breakdown else None
    histogram = _histogram(sides, dataset) if config.histogram and dataset is not None else None
    result = EvalResult(
        test_set=_name(sides.file, dataset),
        metrics=metrics,
        protocol={
            **_protocol(config),
            "flip": bool(sides.file.attributes.get("flip", False)),
            "visible_fraction": fraction_from,
            "sgsfa": __version__,
            "torch": torch.__version__,
        },
        counts=_counts(sides),
        origin=dict(sides.file.attributes),
        notes=tuple(notes),
        before_rerank=plain if reranked is not None else None,
        intervals=_intervals(metrics, config.bootstrap),
        verification=verification,
        gain=None if ignored is None else breakdown.gain(plain, ignored),
        histogram=None if histogram is None else histogram.metrics,
        histogram_same_camera=None if histogram is None else histogram.same_camera,
        breakdown=_breakdown(final, metrics, sides, fraction, config) if config.breakdown else (),
    )
    table = _table(sides, metrics, fraction, ignored)
    wants_pictures = dataset is not None and config.pictures > 0 and sides.gallery is not None
    shown = _shown(sides, rule, metrics, reranked, config.pictures) if wants_pictures else ()
    return Evaluation(result, table, shown)


def rule_of(config: MatchingConfig) -> Rule:
    """The distance rule that a configuration names."""
    return Rule(config.rule, config.shrink, config.global_term, config.metric)


def _read(path: Path, config: MatchingConfig) -> _Sides:
    device = resolve_device(config.device)
    file = FeatureFile.open(path)
    pids, camids, splits = file.roles()
    known = pids >= 0
    query_rows = np.flatnonzero((splits == "query") & known)
    gallery_rows = np.flatnonzero((splits == "gallery") & known)
    for name, rows in (("query", query_rows), ("gallery", gallery_rows)):
        if not len(rows):
            present = ", ".join(
                f"{count} {split}" for split, count in zip(*np.unique(splits, return_counts=True), strict=True)
            )
            raise DataError(
                f"the features file has no {name} images with an identity",
                where=path,
                expected=f"rows of the splits query and gallery (found: {present or 'no rows'})",
                hint="extract features of a data set with queries and a gallery; for a plain folder use `sgsfa search`",
            )
    raw = _rows_at(file, query_rows)
    query = part_set(raw, file.thresholds, config.visibility, device)
    row_bytes = 4 * (len(PARTS) * file.part_dim + file.global_dim)
    gallery = None
    if len(gallery_rows) * row_bytes <= MEMORY_BYTES:
        gallery = part_set(_rows_at(file, gallery_rows), file.thresholds, config.visibility, device)
    return _Sides(
        file=file,
        query_rows=query_rows,
        gallery_rows=gallery_rows,
        pids=pids,
        camids=camids,
        query=query,
        gallery=gallery,
        visible=raw.visibility > file.thresholds,
        dropped=int((np.isin(splits, ("query", "gallery")) & ~known).sum()),
    )


def _rows_at(file: FeatureFile, rows: Ints) -> FeatureRows:
    return file.rows(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else file.at(rows)


def _rank_in_memory(
    sides: _Sides, rule: Rule, config: MatchingConfig, progress: Progress
) -> tuple[Ranking, Verification | None]:
    assert sides.gallery is not None
    stream = RankStream(*sides.ids)
    verification = VerificationStream(Relatives.of(*sides.ids)) if config.verification else None
    with progress.task("rank", total=len(sides.query), unit="queries") as task:
        for block in distance_blocks(sides.query, sides.gallery, rule=rule):
            stream.update(block)
            if verification is not None:
                verification.update(block)
            task.advance(len(block))
    return stream.ranking(), None if verification is None else verification.compute()


def _rerank(sides: _Sides, rule: Rule, config: MatchingConfig) -> npt.NDArray[np.float32]:
    assert sides.gallery is not None
    gc.collect()
    return k_reciprocal(
        sides.query,
        sides.gallery,
        rule=rule,
        k1=config.rerank_k1,
        k2=config.rerank_k2,
        lambda_value=config.rerank_lambda,
    )


def _refuse_in_streaming(config: MatchingConfig, path: Path) -> None:
    named = {
        "matching.rerank": config.rerank,
        "matching.query_expansion": config.query_expansion > 0,
        "matching.verification": config.verification,
    }
    for key, on in named.items():
        if on:
            raise ConfigError(
                f"{key} needs all features in memory, and these are more than {MEMORY_BYTES >> 30} GB",
                where=path,
                hint=f"leave {key} off",
            )


def _without_visibility(sides: _Sides, rule: Rule, config: MatchingConfig, progress: Progress) -> RankMetrics | None:
    """The metrics of the same rule with every part taken as visible; None where that changes nothing."""
    if rule.name == "all" or sides.file.part_dim == 0 or sides.gallery is None:
        return None
    stream = RankStream(*sides.ids, config.max_rank, config.average_precision)
    query, gallery = (
        PartSet(side.parts, side.global_feature, torch.ones_like(side.visible)) for side in (sides.query, sides.gallery)
    )
    with progress.task("rank, visibility ignored", total=len(query), unit="queries") as task:
        for block in distance_blocks(query, gallery, rule=rule):
            stream.update(block)
            task.advance(len(block))
    return stream.compute()


def _visible_fraction(sides: _Sides, dataset: Dataset | None) -> tuple[npt.NDArray[np.float64], str]:
    """How much of each query's person is seen, and who says so."""
    names = sides.file.names(sides.query_rows)
    if dataset is not None and dataset.extra:
        told = [dataset.extra.get(str(name), {}).get("visible") for name in names]
        if any(told):
            return np.array([float(value) if value else np.nan for value in told]), "data set"
    if sides.file.part_dim == 0:
        return np.full(len(names), np.nan), "unknown"
    return sides.visible.mean(axis=1), "predicted parts"


def _histogram(sides: _Sides, dataset: Dataset) -> HistogramBaseline:
    """The rival on the same images: those that extraction could not read are left out here too."""
    queries, gallery = (set(sides.file.names(rows).tolist()) for rows in (sides.query_rows, sides.gallery_rows))
    return histogram_baseline(
        dataset,
        [record for record in dataset.split("query") if record.path in queries],
        [record for record in dataset.split("gallery") if record.path in gallery],
    )


def _breakdown(
    ranking: Ranking,
    metrics: RankMetrics,
    sides: _Sides,
    fraction: npt.NDArray[np.float64],
    config: MatchingConfig,
) -> tuple[breakdown.Group, ...]:
    groups = breakdown.by_fraction(metrics, fraction)
    if sides.file.part_dim:
        groups += breakdown.by_part(metrics, sides.visible)
        groups += breakdown.by_visible_set(metrics, sides.visible)
    _, _, query_camids, gallery_camids = sides.ids
    groups += breakdown.by_camera_pair(ranking, query_camids, gallery_camids, config.average_precision)
    return tuple(groups)


def _intervals(metrics: RankMetrics, samples: int) -> dict[str, Interval]:
    if not samples:
        return {}
    values: dict[str, npt.NDArray[Any]] = {"mAP": metrics.per_query_ap, "mINP": metrics.per_query_inp}
    for rank in RANKS:
        hit = (metrics.first_hit <= rank).astype(np.float64)
        values[f"rank{rank}"] = np.where(metrics.valid, hit, np.nan)
    return {name: bootstrap_mean(value, samples=samples) for name, value in values.items()}


def _protocol(config: MatchingConfig) -> dict[str, Any]:
    """The decisive choices of matching, by their names in the configuration."""
    table = config.model_dump(mode="json")
    left_out = {"features", "pictures", "breakdown", "histogram", "bootstrap", "verification"}
    return {name: table[name] for name in config.decisive_fields() if name not in left_out}


def _counts(sides: _Sides) -> Mapping[str, int]:
    query_pids, gallery_pids, query_camids, gallery_camids = sides.ids
    return {
        "query_images": len(query_pids),
        "query_identities": len(np.unique(query_pids)),
        "gallery_images": len(gallery_pids),
        "gallery_identities": len(np.unique(gallery_pids)),
        "cameras": len(np.union1d(query_camids, gallery_camids)),
        "dropped_images": sides.dropped,
    }


def _name(file: FeatureFile, dataset: Dataset | None) -> str:
    if dataset is not None:
        return dataset.name
    data = str(file.attributes.get("data", ""))
    return data.partition(":")[2] or file.path.stem


def _table(
    sides: _Sides, metrics: RankMetrics, fraction: npt.NDArray[np.float64], ignored: RankMetrics | None
) -> QueryTable:
    query_pids, _, query_camids, _ = sides.ids
    return QueryTable(
        names=tuple(sides.file.names(sides.query_rows).tolist()),
        pids=query_pids,
        camids=query_camids,
        visible_fraction=fraction,
        parts=tuple(_part_names(row) for row in sides.visible),
        ap=metrics.per_query_ap,
        inp=metrics.per_query_inp,
        first_hit=metrics.first_hit,
        ap_ignored=np.full(len(query_pids), np.nan) if ignored is None else ignored.per_query_ap,
    )


def _part_names(visible: npt.NDArray[np.bool_]) -> str:
    return " ".join(part for part, shown in zip(PARTS, visible, strict=True) if shown)


def _shown(
    sides: _Sides, rule: Rule, metrics: RankMetrics, reranked: npt.NDArray[np.float32] | None, count: int
) -> tuple[RankedQuery, ...]:
    """Rankings to draw, spread evenly from the worst AP to the best: neither the best nor the worst foot forward."""
    assert sides.gallery is not None
    order = np.argsort(metrics.per_query_ap, kind="stable")[: metrics.num_valid_queries]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    if reranked is None:
        left = prepare(sides.query.take(chosen), rule, is_query=True)
        matrix = distance_matrix(left, sides.gallery, rule=rule).cpu().numpy()
    else:
        matrix = reranked[chosen]
    query_pids, gallery_pids, query_camids, gallery_camids = sides.ids
    shown = []
    for query, line in zip(chosen, matrix, strict=True):
        own = (gallery_pids == query_pids[query]) & (gallery_camids == query_camids[query])
        nearest = np.flatnonzero(~own)[np.argsort(line[~own], kind="stable")[:_SHOWN]]
        shown.append(
            RankedQuery(
                name=str(sides.file.names(sides.query_rows[[query]])[0]),
                title=f"person {query_pids[query]}, camera {query_camids[query]}, AP {metrics.per_query_ap[query]:.2f}",
                parts=_part_names(sides.visible[query]),
                gallery=tuple(sides.file.names(sides.gallery_rows[nearest]).tolist()),
                captions=tuple(f"person {gallery_pids[i]}, camera {gallery_camids[i]}" for i in nearest),
                distances=tuple(float(line[i]) for i in nearest),
                right=tuple(bool(gallery_pids[i] == query_pids[query]) for i in nearest),
            )
        )
    return tuple(shown)

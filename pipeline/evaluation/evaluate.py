"""From features to metrics, breakdowns and ranking figures."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import MatchingConfig
from pipeline.datasets.records import Dataset
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.figures import RankedQuery, draw_rankings
from pipeline.evaluation.histogram import HistogramBaseline, histogram_baseline
from pipeline.evaluation.queries import QUERIES_FILE, QueryTable
from pipeline.formats.feature_file import FeatureFile, open_features
from pipeline.formats.features import Features
from pipeline.formats.provenance import JsonScalar
from pipeline.formats.results import (
    METRICS,
    RANKS,
    RESULT_FILE,
    EvaluationResult,
    Group,
    Interval,
    Scores,
    Verification,
)
from pipeline.formats.table import Table, Tabular
from pipeline.matching import breakdown
from pipeline.matching.distance import MatchingRule, distance_blocks, distance_matrix, prepare
from pipeline.matching.intervals import bootstrap_mean
from pipeline.matching.metrics import PositivesAndJunk, Ranking, RankMetrics, RankStream
from pipeline.matching.rerank import expand_queries, k_reciprocal
from pipeline.matching.search import rank_on_disk
from pipeline.matching.verification import VerificationStream
from pipeline.parts import PARTS
from pipeline.runtime.device import resolve_device
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.progress import SILENT, Progress
from pipeline.version import __version__

MEMORY_BYTES = 4 * 2**30
"""Gallery features above this are streamed from the file."""

_RANKED = 10
_LISTED = 3

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evaluation(Tabular):
    """A result, its queries one by one, and rankings chosen for figures."""

    result: EvaluationResult
    queries: QueryTable
    rankings: tuple[RankedQuery, ...]

    def table(self) -> Table:
        """Return the metrics as a table."""
        return self.result.table()

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values, as in `result.json`."""
        return self.result.to_json()

    def save(self, folder: Path, dataset: Dataset | None = None) -> EvaluationResult:
        """Write `result.json`, `queries.csv` and, with the images, ranking figures into a folder.

        Returns:
            The result, which names its figures.

        Raises:
            ImageError: An image for the figures cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        figures = draw_rankings(folder, dataset.root, self.rankings) if dataset is not None and self.rankings else ()
        result = replace(self.result, figures=figures)
        self.queries.write(folder / QUERIES_FILE)
        result.save(folder / RESULT_FILE)
        return result


@dataclass(frozen=True, slots=True)
class _TestSet:
    """Query and gallery of a test set, and how they are evaluated.

    Attributes:
        gallery: None where it is streamed from the file.
        ids: Query and gallery identities, query and gallery cameras.
        file: The features file, None for features in memory.
        gallery_rows: (G,) rows of the gallery in the file.
        dropped: Query and gallery images without an identity.
    """

    query: Features
    gallery: Features | None
    ids: tuple[Ints, Ints, Ints, Ints]
    file: FeatureFile | None
    gallery_rows: Ints
    dropped: int
    dataset: Dataset | None
    config: MatchingConfig
    rule: MatchingRule
    device: torch.device
    progress: Progress

    def stream(self, title: str, query: Features, gallery: Features, *streams: RankStream | VerificationStream) -> None:
        """Feed the distances of all pairs to `streams`."""
        with self.progress.task(title, total=len(query), unit="queries") as task:
            for block in distance_blocks(query, gallery, rule=self.rule, device=self.device):
                for stream in streams:
                    stream.update(block)
                task.advance(len(block))


def evaluate(
    features: Path | Features,
    *,
    dataset: Dataset | None = None,
    config: MatchingConfig | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Rank the gallery for each query and compute the metrics. Nothing is written, see `Evaluation.save`.

    Args:
        features: A features file, or features in memory, with the splits `query` and `gallery`.
        dataset: The images, for figures, the histogram baseline and visible fractions; None: without those.
        config: Matching rule, re-ranking and what else to compute; None: the defaults.
        progress: Reports each step.

    Raises:
        FormatError: The features cannot be used.
        DataError: There is no query, no gallery, or no query with a match.
        ConfigError: The options contradict each other.
        ImageError: An image for the histograms cannot be read.
        DeviceError: Memory is exhausted.
    """
    config = config or MatchingConfig()
    with memory_advice("evaluate", config):
        return _evaluate(_read(features, dataset, config, progress))


def _evaluate(test: _TestSet) -> Evaluation:
    config = test.config
    if test.gallery is None:
        refuse_in_streaming(config)
    elif config.query_expansion:
        k = config.query_expansion
        test = replace(test, query=expand_queries(test.query, test.gallery, rule=test.rule, device=test.device, k=k))
    ranking, verification = _rank(test)
    plain = metrics = ranking.metrics(config.max_rank, config.average_precision)
    reranked = _rerank(test) if config.rerank else None
    if reranked is not None:
        stream = RankStream(*test.ids)
        stream.update(reranked)
        ranking = stream.ranking()
        metrics = ranking.metrics(config.max_rank, config.average_precision)
    fraction, fraction_source = _visible_fraction(test)
    ignored = _without_visibility(test) if config.breakdown else None
    histogram = _histogram(test) if config.histogram else None
    provenance = dict(test.query.provenance.values)
    result = EvaluationResult(
        test_set=_name(test),
        metrics=_scores(metrics),
        protocol=_protocol(config)
        | {
            "flip": bool(provenance.get("flip", False)),
            "visible_fraction": fraction_source,
            "sgsfa": __version__,
            "torch": torch.__version__,
        },
        counts=_counts(test),
        provenance=provenance,
        notes=_notes(test, ranking.coincident()),
        before_rerank=_scores(plain) if reranked is not None else None,
        intervals=_intervals(metrics, config.bootstrap),
        verification=verification,
        gain=None if ignored is None else breakdown.gain(plain, ignored),
        histogram=None if histogram is None else _scores(histogram.metrics),
        histogram_same_camera=None if histogram is None else histogram.same_camera,
        breakdown=_breakdown(test, ranking, metrics, fraction) if config.breakdown else (),
    )
    return Evaluation(result, _query_table(test, metrics, fraction, ignored), _rankings(test, metrics, reranked))


def _read(features: Path | Features, dataset: Dataset | None, config: MatchingConfig, progress: Progress) -> _TestSet:
    source = features if isinstance(features, Features) else open_features(features)
    file = source if isinstance(source, FeatureFile) else None
    pids, camids = source.pids, source.camids
    split_rows = {split: source.split_rows(split) for split in ("query", "gallery")}
    with_identity = {split: rows[pids[rows] >= 0] for split, rows in split_rows.items()}
    for split, rows in with_identity.items():
        if not len(rows):
            found = ", ".join(f"{len(each)} {name}" for name, each in split_rows.items())
            raise DataError(
                f"no {split} images with an identity in the features ({len(pids)} images: {found})",
                where=None if file is None else file.path,
                expected="features of a data set with queries and a gallery",
            )
    query, gallery = with_identity["query"], with_identity["gallery"]
    in_memory = file is None or len(gallery) * 4 * (len(PARTS) * file.part_dim + file.global_dim) <= MEMORY_BYTES
    pick = source.select if isinstance(source, Features) else source.load
    return _TestSet(
        query=pick(query),
        gallery=pick(gallery) if in_memory else None,
        ids=(pids[query], pids[gallery], camids[query], camids[gallery]),
        file=file,
        gallery_rows=gallery,
        dropped=sum(map(len, split_rows.values())) - len(query) - len(gallery),
        dataset=dataset,
        config=config,
        rule=MatchingRule.from_config(config),
        device=resolve_device(config.device),
        progress=progress,
    )


def _rank(test: _TestSet) -> tuple[Ranking, Verification | None]:
    if test.gallery is None:
        assert test.file is not None
        rows, rule, device, progress = test.gallery_rows, test.rule, test.device, test.progress
        return rank_on_disk(test.query, test.file, rule=rule, device=device, rows=rows, progress=progress), None
    stream = RankStream(*test.ids)
    verification = [VerificationStream(PositivesAndJunk.of(*test.ids))] if test.config.verification else []
    test.stream("rank", test.query, test.gallery, stream, *verification)
    return stream.ranking(), verification[0].compute() if verification else None


def _rerank(test: _TestSet) -> npt.NDArray[np.float32]:
    assert test.gallery is not None
    gc.collect()
    config = test.config
    sizes = {"k1": config.rerank_k1, "k2": config.rerank_k2}
    return k_reciprocal(
        test.query, test.gallery, rule=test.rule, device=test.device, **sizes, lambda_value=config.rerank_lambda
    )


def refuse_in_streaming(config: MatchingConfig) -> None:
    """Check that the options work on a gallery that is streamed from its file.

    Raises:
        ConfigError: Some need all its features in memory.
    """
    options = {
        "matching.rerank": config.rerank,
        "matching.query_expansion": config.query_expansion > 0,
        "matching.verification": config.verification,
    }
    if on := [key for key, value in options.items() if value]:
        raise ConfigError(
            f"{', '.join(on)} needs all gallery features in memory, and these are larger than {MEMORY_BYTES >> 30} GB",
            where=on[0],
        )


def _without_visibility(test: _TestSet) -> RankMetrics | None:
    """Compute the metrics of the same rule with every part visible; None where that changes nothing."""
    if test.rule.name == "all" or test.query.part_dim == 0 or test.gallery is None:
        return None
    stream = RankStream(*test.ids, test.config.max_rank, test.config.average_precision)
    test.stream("rank, visibility ignored", test.query.all_visible(), test.gallery.all_visible(), stream)
    return stream.compute()


def _visible_fraction(test: _TestSet) -> tuple[Doubles, str]:
    """Return the visible fraction of each query's person, and its source."""
    names = [str(name) for name in test.query.names]
    if test.dataset is not None:
        recorded = [test.dataset.extra.get(name, {}).get("visible") for name in names]
        if any(recorded):
            return np.array([float(value) if value else np.nan for value in recorded]), "data set"
    if test.query.part_dim == 0:
        return np.full(len(names), np.nan), "unknown"
    return test.query.visible.mean(axis=1), "predicted parts"


def _histogram(test: _TestSet) -> HistogramBaseline | None:
    """Rank the same images by colour histograms, without those that have no features."""
    if test.dataset is None:
        return None
    gallery = test.gallery.names if test.gallery is not None else test.file.names(test.gallery_rows)  # type: ignore[union-attr]
    query_names, gallery_names = set(test.query.names.tolist()), set(gallery.tolist())
    return histogram_baseline(
        test.dataset,
        [record for record in test.dataset.split("query") if record.path in query_names],
        [record for record in test.dataset.split("gallery") if record.path in gallery_names],
    )


def _breakdown(test: _TestSet, ranking: Ranking, metrics: RankMetrics, fraction: Doubles) -> tuple[Group, ...]:
    groups = breakdown.by_fraction(metrics, fraction)
    if test.query.part_dim:
        groups += breakdown.by_part(metrics, test.query.visible)
        groups += breakdown.by_visible_set(metrics, test.query.visible)
    groups += breakdown.by_camera_pair(ranking, *test.ids[2:], test.config.average_precision)
    return tuple(groups)


def _scores(metrics: RankMetrics) -> Scores:
    return Scores(
        **{f"rank{rank}": metrics.rank(rank) for rank in RANKS},
        mAP=metrics.mAP,
        mINP=metrics.mINP,
        num_queries=metrics.num_queries,
        num_valid_queries=metrics.num_valid_queries,
        cmc=tuple(metrics.cmc.tolist()),
    )


def _intervals(metrics: RankMetrics, samples: int) -> dict[str, Interval]:
    if not samples:
        return {}
    values = [np.where(metrics.valid, metrics.first_hit <= rank, np.nan) for rank in RANKS]
    values += [metrics.per_query_ap, metrics.per_query_inp]
    found = {name: bootstrap_mean(value, samples=samples) for name, value in zip(METRICS, values, strict=True)}
    return {name: interval for name, interval in found.items() if interval is not None}


def _protocol(config: MatchingConfig) -> dict[str, JsonScalar]:
    """Return the decisive choices of matching, by their names in the configuration."""
    table = config.model_dump(mode="json")
    left_out = {"features", "figures", "report", "breakdown", "histogram", "bootstrap", "verification"}
    return {name: table[name] for name in config.decisive_fields() if name not in left_out}


def _notes(test: _TestSet, coincident: int) -> tuple[str, ...]:
    source = test.dataset or test.file
    notes = list(source.notes) if source is not None else []
    if test.dropped:
        notes.append(f"{test.dropped} images without an identity (-1) left out")
    if coincident:
        notes.append(
            f"{coincident:,} of {len(test.query):,} queries have a match at distance 0: the same image is query and "
            "gallery, or the network returns one feature for all images"
        )
    failed = test.file.failed if test.file else ()
    if failed:
        listed = ", ".join(each.path for each in failed[:_LISTED]) + (", ..." if len(failed) > _LISTED else "")
        notes.append(f"{len(failed):,} images have no features because they could not be read: {listed}")
    return tuple(notes)


def _counts(test: _TestSet) -> dict[str, int]:
    query_pids, gallery_pids, query_camids, gallery_camids = test.ids
    return {
        "query_images": len(query_pids),
        "query_identities": len(np.unique(query_pids)),
        "gallery_images": len(gallery_pids),
        "gallery_identities": len(np.unique(gallery_pids)),
        "cameras": len(np.union1d(query_camids, gallery_camids)),
        "dropped_images": test.dropped,
        "unreadable_images": len(test.file.failed) if test.file else 0,
    }


def _name(test: _TestSet) -> str:
    if test.dataset is not None:
        return test.dataset.name
    recorded = str(test.query.provenance.values.get("data", "")).partition(":")[2]
    return recorded or (test.file.path.stem if test.file else "features")


def _query_table(test: _TestSet, metrics: RankMetrics, fraction: Doubles, ignored: RankMetrics | None) -> QueryTable:
    query = test.query
    return QueryTable(
        names=tuple(query.names.tolist()),
        pids=query.pids,
        camids=query.camids,
        visible_fraction=fraction,
        parts=tuple(_part_names(row) for row in query.visible),
        ap=metrics.per_query_ap,
        inp=metrics.per_query_inp,
        first_hit=metrics.first_hit,
        ap_ignored=np.full(len(query), np.nan) if ignored is None else ignored.per_query_ap,
    )


def _part_names(visible: Bools) -> str:
    return " ".join(part for part, shown in zip(PARTS, visible, strict=True) if shown)


def _rankings(
    test: _TestSet, metrics: RankMetrics, reranked: npt.NDArray[np.float32] | None
) -> tuple[RankedQuery, ...]:
    """Choose rankings to draw, spread evenly from the worst AP to the best; none of a gallery that is streamed."""
    count = test.config.figures
    if test.gallery is None or test.dataset is None or not count:
        return ()
    order = np.argsort(metrics.per_query_ap, kind="stable")[: metrics.num_valid_queries]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    query = test.query.select(chosen)
    if reranked is None:
        matrix = distance_matrix(prepare(query, test.rule, is_query=True), test.gallery, rule=test.rule)
    else:
        matrix = reranked[chosen]
    ap = metrics.per_query_ap[chosen]
    return tuple(_ranked(query, test.gallery, row, line, ap[row]) for row, line in enumerate(matrix))


def _ranked(query: Features, gallery: Features, row: int, line: npt.NDArray[np.float32], ap: float) -> RankedQuery:
    pid, camid = query.pids[row], query.camids[row]
    kept = np.flatnonzero((gallery.pids != pid) | (gallery.camids != camid))
    order = kept[np.argsort(line[kept], kind="stable")[:_RANKED]]
    nearest = gallery.select(order)
    return RankedQuery(
        name=str(query.names[row]),
        title=f"person {pid}, camera {camid}, AP {ap:.2f}",
        parts=_part_names(query.visible[row]),
        gallery=tuple(nearest.names.tolist()),
        captions=tuple(f"person {a}, camera {b}" for a, b in zip(nearest.pids, nearest.camids, strict=True)),
        distances=tuple(line[order].tolist()),
        correct=tuple((nearest.pids == pid).tolist()),
    )

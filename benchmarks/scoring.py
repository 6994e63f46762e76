"""Figures of one checkpoint on one test set: matching rules, visibility, and each part by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.datasets.images import decode_batches
from pipeline.datasets.records import Dataset, Record
from pipeline.formats.features import Features
from pipeline.matching.distance import MatchingRule, distance_matrix
from pipeline.matching.metrics import RankMetrics, rank_metrics
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import Embedded, embed
from pipeline.model.visibility import visible_parts
from pipeline.parts import PARTS
from pipeline.training.calibrate import roc_auc

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
BATCH = 256
THREADS = 4
RULES = ("shrunk", "mean", "query", "all", "sum")
SHRINKS = (0.5, 2.0, 4.0)


@dataclass(frozen=True)
class Side:
    """Queries or gallery of a test set, embedded.

    Attributes:
        features: On the device.
        pids: Person ids.
        camids: Camera ids.
        names: Image names.
    """

    features: Embedded
    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int64]
    names: tuple[str, ...]


def score(checkpoint: Path, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """Rank-1 and mAP in percent by matching rule; where the data set has `truth.npz`, also how visibility does.

    Args:
        checkpoint: A trained network.
        dataset: With queries and gallery.
        device: Where to embed.
    """
    network, meta = load_checkpoint(checkpoint)
    network = network.to(device).to(memory_format=torch.channels_last)
    queries, gallery = (_side(network, meta.model, dataset, split, device) for split in ("query", "gallery"))
    if meta.model.kind == "baseline":
        # Without parts every rule is the global distance.
        names = (*RULES, *(f"shrunk, m = {shrink:g}" for shrink in SHRINKS), "global")
        return dict.fromkeys(names, _ranked(queries, gallery, _global_distance(queries, gallery)))
    left, right = (_features(side, meta.thresholds) for side in (queries, gallery))
    figures: dict[str, Any] = {
        rule: _ranked(queries, gallery, distance_matrix(left, right, rule=MatchingRule(rule), device=device))
        for rule in RULES
    }
    for shrink in SHRINKS:
        distances = distance_matrix(left, right, rule=MatchingRule("shrunk", shrink=shrink), device=device)
        figures[f"shrunk, m = {shrink:g}"] = _ranked(queries, gallery, distances)
    soft = distance_matrix(left, right, rule=MatchingRule(visibility="soft"), device=device)
    figures["shrunk, soft"] = _ranked(queries, gallery, soft)
    figures["global"] = _ranked(queries, gallery, _global_distance(queries, gallery))
    truth = dataset.root / "truth.npz"
    if truth.is_file():
        visible, truncated = _truth(truth, queries.names, meta.model)
        for rule in RULES:
            metrics = _metrics(queries, gallery, distance_matrix(left, right, rule=MatchingRule(rule)))
            for name, chosen in (("truncated", truncated), ("occluded", ~truncated)):
                subset = metrics.subset(chosen)
                figures[f"{rule}, {name}"] = _percent(subset) if subset is not None else None
        figures["visibility_auc"] = _areas(queries.features.visibility, visible)
        figures["balanced_accuracy"] = _accuracy(left.visible, visible)
        figures["parts"] = _parts_alone(queries, gallery, visible)
        oracle = Features.from_arrays(left.parts, left.global_feature, visible)
        figures["shrunk, true visibility"] = _ranked(queries, gallery, distance_matrix(oracle, right))
    return figures


def _side(network: torch.nn.Module, model: ModelConfig, dataset: Dataset, split: str, device: torch.device) -> Side:
    records: Sequence[Record] = dataset.split(split)
    paths = [dataset.path_of(record) for record in records]
    embedded, kept = [], []
    for decoded in decode_batches(paths, model.height, model.width, batch=BATCH, threads=THREADS, fit=model.fit):
        images, positions = decoded.readable_images()
        embedded.append(embed(network, torch.from_numpy(images).to(device)))
        kept += [records[i] for i in positions]
    features = Embedded(*(torch.cat([getattr(batch, name) for batch in embedded]) for name in Embedded.__slots__))
    return Side(
        features,
        np.array([record.pid for record in kept]),
        np.array([record.camid for record in kept]),
        tuple(record.path for record in kept),
    )


def _features(side: Side, thresholds: Sequence[float]) -> Features:
    arrays = (side.features.parts, side.features.global_feature, side.features.visibility)
    return Features.from_arrays(*(array.cpu() for array in arrays), thresholds=thresholds)


def _ranked(queries: Side, gallery: Side, distances: Tensor | Floats) -> dict[str, float]:
    return _percent(_metrics(queries, gallery, distances))


def _metrics(queries: Side, gallery: Side, distances: Tensor | Floats) -> RankMetrics:
    return rank_metrics(distances, queries.pids, gallery.pids, queries.camids, gallery.camids)


def _percent(metrics: RankMetrics) -> dict[str, float]:
    return {"rank1": round(100 * metrics.rank(1), 2), "mAP": round(100 * metrics.mAP, 2)}


def _global_distance(queries: Side, gallery: Side) -> Tensor:
    return _cosine(queries.features.global_feature, gallery.features.global_feature)


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    left, right = (torch.nn.functional.normalize(features, dim=1) for features in (left, right))
    return 1 - left @ right.T


def _truth(path: Path, names: Sequence[str], model: ModelConfig) -> tuple[Bools, Bools]:
    """What each query shows (Q, 7), and whether it is truncated (Q)."""
    with np.load(path) as stored:
        row_of = {str(name): row for row, name in enumerate(stored["names"])}
        rows = [row_of[name] for name in names]
        parts, truncated = stored["parts"][rows], stored["truncated"][rows]
    return visible_parts(torch.from_numpy(parts).float() / 255, model).numpy(), truncated


def _areas(predicted: Tensor, visible: Bools) -> dict[str, float]:
    scores = predicted.cpu().numpy()
    return {
        part: round(roc_auc(scores[:, i], visible[:, i]), 3)
        for i, part in enumerate(PARTS)
        if 0 < visible[:, i].sum() < len(visible)
    }


def _accuracy(predicted: Bools, visible: Bools) -> dict[str, float]:
    """Mean of the shares of visible and of hidden parts that are recognised as such."""
    return {
        part: round(float((predicted[visible[:, i], i].mean() + (~predicted[~visible[:, i], i]).mean()) / 2), 3)
        for i, part in enumerate(PARTS)
        if 0 < visible[:, i].sum() < len(visible)
    }


def _parts_alone(queries: Side, gallery: Side, visible: Bools) -> dict[str, dict[str, dict[str, float]]]:
    """Each part by itself against galleries that show it, for queries that show it and for those that hide it."""
    figures = {}
    for i, part in enumerate(PARTS):
        left, right = (side.features.parts[:, i] for side in (queries, gallery))
        metrics = _metrics(queries, gallery, _cosine(left, right))
        subsets = {"visible": visible[:, i], "hidden": ~visible[:, i]}
        ranked = {name: metrics.subset(selected) for name, selected in subsets.items()}
        figures[part] = {name: _percent(subset) for name, subset in ranked.items() if subset is not None}
    return figures

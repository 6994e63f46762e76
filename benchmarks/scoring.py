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
from pipeline.matching.distance import PartSet, Rule, distance_matrix
from pipeline.matching.metrics import RankMetrics, rank_metrics
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import Embedded, embed
from pipeline.parts import PARTS
from pipeline.training.calibrate import roc_auc, true_visibility

Bools = npt.NDArray[np.bool_]
BATCH = 256
THREADS = 4
RULES = ("shrunk", "mean", "all")
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
        return {"global": _ranked(queries, gallery, _global_distance(queries, gallery))}
    thresholds = torch.tensor(meta.thresholds, device=device)
    left, right = (_part_set(side, thresholds) for side in (queries, gallery))
    figures: dict[str, Any] = {
        rule: _ranked(queries, gallery, distance_matrix(left, right, rule=Rule(rule))) for rule in RULES
    }
    for shrink in SHRINKS:
        distances = distance_matrix(left, right, rule=Rule("shrunk", shrink=shrink))
        figures[f"shrunk, m = {shrink:g}"] = _ranked(queries, gallery, distances)
    soft = [_part_set(side, thresholds, soft=True) for side in (queries, gallery)]
    figures["shrunk, soft"] = _ranked(queries, gallery, distance_matrix(*soft))
    figures["global"] = _ranked(queries, gallery, _global_distance(queries, gallery))
    truth = dataset.root / "truth.npz"
    if truth.is_file():
        visible, truncated = _truth(truth, queries.names, meta.model)
        for rule in RULES:
            metrics = _metrics(queries, gallery, distance_matrix(left, right, rule=Rule(rule)))
            for name, chosen in (("truncated", truncated), ("occluded", ~truncated)):
                subset = metrics.subset(chosen)
                figures[f"{rule}, {name}"] = _percent(subset) if subset is not None else None
        figures["visibility_auc"] = _areas(queries.features.visibility, visible)
        figures["balanced_accuracy"] = _accuracy(left.visible.cpu().numpy() > 0, visible)
        figures["parts"] = _parts_alone(left, right, queries, gallery, visible)
        oracle = PartSet(left.parts, left.global_feature, torch.from_numpy(visible).to(device).float())
        figures["shrunk, true visibility"] = _ranked(queries, gallery, distance_matrix(oracle, right))
    return figures


def _side(network: torch.nn.Module, model: ModelConfig, dataset: Dataset, split: str, device: torch.device) -> Side:
    records: Sequence[Record] = dataset.split(split)
    paths = [dataset.path_of(record) for record in records]
    found, kept = [], []
    for batch in decode_batches(paths, model.height, model.width, batch=BATCH, threads=THREADS):
        found.append(embed(network, torch.from_numpy(batch.images).to(device)))
        kept += [records[i] for i in batch.index.tolist()]
    features = Embedded(*(torch.cat([getattr(each, name) for each in found]) for name in Embedded.__slots__))
    return Side(
        features,
        np.array([record.pid for record in kept]),
        np.array([record.camid for record in kept]),
        tuple(record.path for record in kept),
    )


def _part_set(side: Side, thresholds: Tensor, *, soft: bool = False) -> PartSet:
    features = side.features
    visible = (features.visibility > thresholds).float()
    if soft:
        visible = (features.visibility / thresholds.clamp_min(1e-6)).clamp(0, 1)
    return PartSet(features.parts, features.global_feature, visible)


def _ranked(queries: Side, gallery: Side, distances: Tensor) -> dict[str, float]:
    return _percent(_metrics(queries, gallery, distances))


def _metrics(queries: Side, gallery: Side, distances: Tensor) -> RankMetrics:
    return rank_metrics(distances.cpu(), queries.pids, gallery.pids, queries.camids, gallery.camids)


def _percent(metrics: RankMetrics) -> dict[str, float]:
    return {"rank1": round(100 * metrics.rank(1), 2), "mAP": round(100 * metrics.mAP, 2)}


def _global_distance(queries: Side, gallery: Side) -> Tensor:
    return _cosine(queries.features.global_feature, gallery.features.global_feature)


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    left, right = (torch.nn.functional.normalize(each, dim=1) for each in (left, right))
    return 1 - left @ right.T


def _truth(path: Path, names: Sequence[str], model: ModelConfig) -> tuple[Bools, Bools]:
    """What each query shows (Q, 7), and whether it is truncated (Q)."""
    with np.load(path) as stored:
        row_of = {str(name): row for row, name in enumerate(stored["names"])}
        rows = [row_of[name] for name in names]
        parts, truncated = stored["parts"][rows], stored["truncated"][rows]
    return true_visibility(torch.from_numpy(parts).float() / 255, model).numpy(), truncated


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


def _parts_alone(
    left: PartSet, right: PartSet, queries: Side, gallery: Side, visible: Bools
) -> dict[str, dict[str, dict[str, float]]]:
    """Each part by itself against galleries that show it, for queries that show it and for those that hide it."""
    found = {}
    for i, part in enumerate(PARTS):
        metrics = _metrics(queries, gallery, _cosine(left.parts[:, i], right.parts[:, i]))
        subsets = {"visible": visible[:, i], "hidden": ~visible[:, i]}
        ranked = {name: metrics.subset(chosen) for name, chosen in subsets.items()}
        found[part] = {name: _percent(each) for name, each in ranked.items() if each is not None}
    return found

"""Distances with their reasons: which parts two images share, and how far apart each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config import MatchingConfig
from pipeline.evaluation.evaluate import rule_of
from pipeline.formats.features import FeatureFile, Features, require_comparable
from pipeline.matching.distance import PartSet, Rule, distance_matrix, part_distances, part_set
from pipeline.matching.search import search
from pipeline.parts import PARTS
from pipeline.runtime.device import resolve_device
from pipeline.runtime.progress import SILENT, Progress

WHOLE = "whole body"


@dataclass(frozen=True, slots=True)
class Hit:
    """One gallery image that was found.

    Attributes:
        rank: From 1.
        name: Image name.
        pid: Its identity, -1 where unknown.
        camid: Its camera, -1 where unknown.
        distance: By the rule.
        shared: Distance of each part that counted, by name; the whole body's where it took part.
    """

    rank: int
    name: str
    pid: int
    camid: int
    distance: float
    shared: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for one image; `visible` names the parts that it shows."""

    image: str
    visible: tuple[str, ...]
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class PairPart:
    """One part of two images; `counts` tells whether it enters the distance, `distance` is None without a feature."""

    name: str
    visible_first: bool
    visible_second: bool
    distance: float | None
    counts: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images compared."""

    first: str
    second: str
    rule: str
    distance: float
    parts: tuple[PairPart, ...]


def find(
    query: Features, gallery: Path, *, k: int, config: MatchingConfig, progress: Progress = SILENT
) -> tuple[Found, ...]:
    """Search a gallery file for each query image.

    Args:
        query: Features of the images to look for.
        gallery: A features file; all its rows but queries of a test set are searched.
        k: Hits for each.
        config: Rule, metric, visibility, device.
        progress: Told of rows gone through.

    Raises:
        FormatError: The file cannot be used, or was made with another checkpoint.
        DataError: It holds nothing to search in.
    """
    file = FeatureFile.open(gallery)
    require_comparable(query, file)
    pids, camids, splits = file.roles()
    rows = np.flatnonzero(splits != "query")
    rule = rule_of(config)
    left = part_set(query, query.thresholds, config.visibility, resolve_device(config.device))
    hits = search(left, file, k, rule=rule, visibility=config.visibility, rows=rows, progress=progress)
    names = file.names(hits.rows)
    unique, inverse = np.unique(hits.rows, return_inverse=True)
    right = part_set(file.at(unique), file.thresholds, config.visibility)
    place = inverse.reshape(hits.rows.shape)
    left = left.to("cpu")
    found = []
    for i in range(len(query)):
        one, others = left[i : i + 1], right.take(place[i])
        by_part = part_distances(one, others, metric=config.metric)[0].numpy()
        counting = _counting(one, others, rule)
        listed = tuple(
            Hit(
                rank=j + 1,
                name=str(names[i, j]),
                pid=int(pids[row]),
                camid=int(camids[row]),
                distance=float(hits.distances[i, j]),
                shared={
                    part: float(by_part[j, column])
                    for column, part in enumerate((*PARTS, WHOLE))
                    if counting[j, column]
                },
            )
            for j, row in enumerate(hits.rows[i])
        )
        visible = tuple(part for part, seen in zip(PARTS, query.visible[i], strict=True) if seen)
        found.append(Found(str(query.names[i]), visible, listed))
    return tuple(found)


def compare_pair(images: Features, config: MatchingConfig) -> Pair:
    """Compare the first two images of `images`.

    Raises:
        FormatError: There is nothing to compare.
    """
    rule = rule_of(config)
    both = part_set(images, images.thresholds, config.visibility)
    first, second = both[0:1], both[1:2]
    distance = float(distance_matrix(first, second, rule=rule)[0, 0])
    by_part = part_distances(first, second, metric=config.metric)[0, 0].numpy()
    counting = _counting(first, second, rule)[0]
    seen = np.concatenate([images.visible[:2], np.ones((2, 1), dtype=np.bool_)], axis=1)
    parts = tuple(
        PairPart(
            name,
            bool(seen[0, i]),
            bool(seen[1, i]),
            float(by_part[i]) if np.isfinite(by_part[i]) else None,
            bool(counting[i]),
        )
        for i, name in enumerate((*PARTS, WHOLE))
    )
    return Pair(str(images.names[0]), str(images.names[1]), rule.name, distance, parts)


def _counting(query: PartSet, gallery: PartSet, rule: Rule) -> npt.NDArray[np.bool_]:
    """(G,8) which parts, and in the last column whether the whole body, enter the distances of the first query."""
    shared: npt.NDArray[np.bool_] = (query.visible[0] * gallery.visible).numpy() > 0
    if query.parts.shape[2] == 0:
        shared[:] = False
    elif rule.name == "all":
        shared[:] = True
    elif rule.name == "query":
        shared[:] = query.visible[0].numpy() > 0
    has_global = rule.global_term and query.global_feature.shape[1] > 0
    always = has_global and rule.name == "shrunk" and rule.shrink > 0
    alone = has_global and (rule.name != "sum" or query.parts.shape[2] == 0)
    global_feature = ~shared.any(axis=1, keepdims=True) & alone | always
    return np.concatenate([shared, global_feature], axis=1)

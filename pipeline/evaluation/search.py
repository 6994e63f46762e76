"""Search a gallery for the people of some images, with the distance of every shared part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import MatchingConfig
from pipeline.evaluation.explain import TERMS
from pipeline.formats.feature_file import FeatureFile, require_comparable
from pipeline.formats.features import Features
from pipeline.formats.table import Table, Tabular
from pipeline.matching.approximate import build_index
from pipeline.matching.contributions import NO_SHARED_PART, contributions
from pipeline.matching.distance import MatchingRule
from pipeline.matching.search import Neighbours, search
from pipeline.parts import PARTS
from pipeline.runtime.device import resolve_device
from pipeline.runtime.files import write_json
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.progress import SILENT, Progress

_APPROXIMATE_FROM = 10_000
"""Images from which building an index pays."""


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """A gallery image in a ranking.

    Attributes:
        rank: From 1.
        name: Image name.
        pid: Person id, -1 where unknown.
        camid: Camera id, -1 where unknown.
        distance: Distance by the matching rule.
        shared: Distance of each part that counts, by name; of the global feature where it counts.
    """

    rank: int
    name: str
    pid: int
    camid: int
    distance: float
    shared: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class QueryRanking:
    """The nearest gallery images of one query; `visible` names the query's visible parts."""

    query: str
    visible: tuple[str, ...]
    nearest: tuple[GalleryImage, ...]


@dataclass(frozen=True, slots=True)
class SearchResult(Tabular):
    """The rankings of some queries.

    Attributes:
        rule: Name of the matching rule.
        gallery_images: Images searched.
        approximate: Whether candidates came from an approximate index.
        queries: One ranking per query.
    """

    rule: str
    gallery_images: int
    approximate: bool
    queries: tuple[QueryRanking, ...]

    def table(self) -> Table:
        """Return one row per query and gallery image."""
        rows = tuple(
            (
                each.query,
                one.rank,
                one.distance,
                one.name,
                one.pid if one.pid >= 0 else None,
                one.camid if one.camid >= 0 else None,
                ", ".join(f"{part} {distance:.2f}" for part, distance in one.shared.items()) or "no shared part",
            )
            for each in self.queries
            for one in each.nearest
        )
        return Table(("Query", "Rank", "Distance", "Image", "Person", "Camera", "Shared parts and distances"), rows)

    def save(self, path: Path) -> None:
        """Write the result as JSON, whole or not at all."""
        write_json(path, self.to_json())


def search_gallery(
    query: Features,
    gallery: FeatureFile | Features,
    *,
    k: int = 10,
    config: MatchingConfig | None = None,
    approximate: bool = False,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the nearest gallery images of each query.

    Args:
        query: Features of the query images.
        gallery: A features file or features in memory; all images but queries of a test set are searched.
        k: Gallery images per query.
        config: Matching rule, metric, visibility and device; None: the defaults.
        approximate: Take candidates from an approximate index (extra `faiss`) and rank them exactly. Features in
            memory and galleries of fewer than 10,000 images are searched exactly all the same, which is faster.
        progress: Reports the rows searched.

    Raises:
        FormatError: The gallery cannot be used, or comes from another checkpoint.
        DataError: The gallery has no image to search.
        ConfigError: FAISS is not installed, or the rule cannot be approximated.
        DeviceError: Memory is exhausted.
    """
    config = config or MatchingConfig()
    require_comparable(query, gallery)
    rule = MatchingRule.from_config(config)
    rows = gallery.split_rows("train", "gallery", "all")
    with memory_advice("evaluate", config):
        index = approximate and isinstance(gallery, FeatureFile) and len(rows) >= _APPROXIMATE_FROM
        if index:
            assert isinstance(gallery, FeatureFile)
            found = build_index(gallery, rule=rule, rows=rows).search(query, min(k, len(rows)))
        else:
            device = resolve_device(config.device)
            found = search(query, gallery, k, rule=rule, device=device, rows=rows, progress=progress)
        queries = tuple(_ranking(query, gallery, found, row, rule) for row in range(len(query)))
    return SearchResult(rule.name, len(rows), index, queries)


def _ranking(
    query: Features, gallery: FeatureFile | Features, found: Neighbours, row: int, rule: MatchingRule
) -> QueryRanking:
    rows = found.rows[row][found.rows[row] >= 0]
    nearest = gallery.load(rows) if isinstance(gallery, FeatureFile) else gallery.select(rows)
    terms = contributions(query.select(np.full(len(rows), row)), nearest, rule)
    images = tuple(
        GalleryImage(
            rank=i + 1,
            name=str(nearest.names[i]),
            pid=int(nearest.pids[i]),
            camid=int(nearest.camids[i]),
            distance=float(found.distances[row, i]),
            shared={
                name: float(terms.distances[i, column])
                for column, name in enumerate(TERMS)
                if terms.weights[i, column] > 0 and name != NO_SHARED_PART
            },
        )
        for i in range(len(rows))
    )
    visible = tuple(part for part, shown in zip(PARTS, query.visible[row], strict=True) if shown)
    return QueryRanking(str(query.names[row]), visible, images)

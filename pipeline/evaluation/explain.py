"""Distances with their reasons: the contribution of every part to the distance of two images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from pipeline.errors import DataError
from pipeline.formats.features import Features
from pipeline.formats.table import Table, Tabular
from pipeline.matching.contributions import GLOBAL, NO_SHARED_PART, Contributions, contributions
from pipeline.matching.distance import SHRUNK, MatchingRule
from pipeline.parts import PARTS

TERMS = (*PARTS, GLOBAL, NO_SHARED_PART)
"""Names of the columns of `Contributions`."""


@dataclass(frozen=True, slots=True)
class PartContribution:
    """One term of a distance.

    Attributes:
        name: A part, `global`, or `no shared part`, a constant that ranks such pairs last.
        visible: Whether the part is visible in the query and in the gallery image.
        distance: Distance of the part by itself; None where the features have no such part.
        weight: Its weight in the distance; 0 where it does not count.
        share: `weight * distance` as a share of the whole distance, in [0, 1].
    """

    name: str
    visible: tuple[bool, bool]
    distance: float | None
    weight: float
    share: float


@dataclass(frozen=True, slots=True)
class PairExplanation(Tabular):
    """The distance of two images and its terms: the sum of `weight * distance` over them.

    Attributes:
        query: Image name.
        gallery: Image name.
        rule: Name of the matching rule.
        distance: Distance by the rule.
        parts: One term per part, for the global feature, and `no shared part` where it counts.
    """

    query: str
    gallery: str
    rule: str
    distance: float
    parts: tuple[PartContribution, ...]

    def table(self) -> Table:
        """Return one row per term."""
        return Table(
            ("Part", "In query", "In gallery", "Distance", "Weight", "Share"),
            tuple(
                (part.name, *("yes" if each else "no" for each in part.visible), part.distance, part.weight, part.share)
                for part in self.parts
            ),
            title=f"{self.query} and {self.gallery}: distance {self.distance:.3f} (rule {self.rule})",
            percent=("Share",),
        )

    def to_json(self) -> Mapping[str, Any]:
        """Return the explanation as plain values."""
        plain: Mapping[str, Any] = to_jsonable_python(self)
        return plain


def explain_pair(query: Features, gallery: Features, rule: MatchingRule = SHRUNK) -> PairExplanation:
    """Explain the distance of two images.

    Args:
        query: Features of one image.
        gallery: Features of the other.
        rule: The matching rule.

    Raises:
        DataError: There is not exactly one image on each side.
        FormatError: The features have different dimensions.
    """
    if len(query) != 1 or len(gallery) != 1:
        raise DataError(f"{len(query)} and {len(gallery)} images to explain", expected="one image on each side")
    return explain_pairs(query, gallery, rule)[0]


def explain_pairs(query: Features, gallery: Features, rule: MatchingRule = SHRUNK) -> tuple[PairExplanation, ...]:
    """Explain the distances of query i and gallery image i, for N pairs at once.

    Raises:
        FormatError: The two differ in number or dimensions.
    """
    terms = contributions(query, gallery, rule)
    totals, shares = terms.totals, terms.shares
    visible = np.stack([_visible(query), _visible(gallery)], axis=2)
    return tuple(
        PairExplanation(
            str(query.names[i]),
            str(gallery.names[i]),
            rule.name,
            float(totals[i]),
            tuple(_parts(query, terms, shares, visible, i)),
        )
        for i in range(len(query))
    )


def _visible(side: Features) -> np.ndarray[Any, Any]:
    return np.concatenate([side.visible, np.ones((len(side), 2), dtype=np.bool_)], axis=1)


def _parts(
    query: Features, terms: Contributions, shares: np.ndarray[Any, Any], visible: np.ndarray[Any, Any], pair: int
) -> list[PartContribution]:
    made = []
    for column, name in enumerate(TERMS):
        weight = float(terms.weights[pair, column])
        if name == NO_SHARED_PART and not weight:
            continue
        missing = (name in PARTS and query.part_dim == 0) or (name == GLOBAL and query.global_dim == 0)
        distance = None if missing else float(terms.distances[pair, column])
        first, second = (bool(each) for each in visible[pair, column])
        made.append(PartContribution(name, (first, second), distance, weight, float(shares[pair, column])))
    return made

"""Distances with their reasons: the contribution of every part to the distance of two images."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.formats.features import Features
from pipeline.formats.table import Table, Tabular
from pipeline.matching.contributions import GLOBAL, NO_SHARED_PART, contributions
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


def explain_pair(query: Features, gallery: Features, rule: MatchingRule = SHRUNK) -> PairExplanation:
    """Explain the distance of two images by the matching rule.

    Raises:
        DataError: There is not exactly one image on each side.
        FormatError: The features have different dimensions.
    """
    if len(query) != 1 or len(gallery) != 1:
        raise DataError(f"{len(query)} and {len(gallery)} images to explain", expected="one image on each side")
    terms = contributions(query, gallery, rule)
    missing = set(PARTS if query.part_dim == 0 else ()) | ({GLOBAL} if query.global_dim == 0 else set())
    visible = zip([*query.visible[0], True, True], [*gallery.visible[0], True, True], strict=True)
    columns = zip(TERMS, visible, terms.distances[0], terms.weights[0], terms.shares[0], strict=True)
    parts = tuple(
        PartContribution(
            name,
            (bool(both[0]), bool(both[1])),
            None if name in missing else float(distance),
            float(weight),
            float(share),
        )
        for name, both, distance, weight, share in columns
        if weight or name != NO_SHARED_PART
    )
    return PairExplanation(str(query.names[0]), str(gallery.names[0]), rule.name, float(terms.totals[0]), parts)

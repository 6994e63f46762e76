"""What a report page holds: plain data, ready to be written as JSON into the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.formats.table import Table


@dataclass(frozen=True, slots=True)
class Series:
    """One line or set of bars of a chart; `x` is empty for bars, whose places the chart's labels name."""

    name: str
    y: Sequence[float | None]
    x: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A line or bar chart.

    Attributes:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        note: One sentence that says how to read it.
        labels: Names of the bars.
        unit: The vertical axis runs from 0 to 1.
        points: Mark the points of a line.
    """

    title: str
    kind: Literal["line", "bar"]
    x: str
    y: str
    series: Sequence[Series]
    note: str = ""
    labels: Sequence[str] = ()
    unit: bool = False
    points: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """A table of shares in [0, 1] whose cells are shaded; None where there is no figure."""

    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    note: str = ""
    kind: Literal["matrix"] = "matrix"


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the query browser.

    Attributes:
        name: Name inside the data set.
        visibility: Mean of the predicted mask of each part, in [0, 1].
        visible: Whether it exceeds the part's threshold.
        image: Place of its thumbnail in `Report.images` and of its masks in `Report.masks`, None without one.
    """

    name: str
    pid: int
    camid: int
    visibility: Sequence[float]
    visible: Sequence[bool]
    image: int | None = None


@dataclass(frozen=True, slots=True)
class Hit(Entry):
    """A ranked gallery image.

    Attributes:
        rank: From 1.
        distance: Under the matching rule.
        correct: Same identity as the query.
        contributions: Distance, weight and contribution (their product) of each term; the contributions add up to the
            distance. A distance is None where the feature is missing.
        shared: The parts that enter the distance, for the caption.
    """

    rank: int = 0
    distance: float = 0.0
    correct: bool = False
    contributions: Sequence[tuple[float | None, float, float]] = ()
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Query(Entry):
    """A query and its nearest gallery images.

    Attributes:
        ap: Average precision, None without a match in the gallery.
        first_hit: Rank of the first match.
        fraction: Visible fraction in [0, 1], None where unknown.
        group: Why it fails, empty where it does not.
        hits: The nearest, best first.
    """

    ap: float | None = None
    first_hit: int | None = None
    fraction: float | None = None
    group: str = ""
    hits: Sequence[Hit] = ()


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Queries that fail for one reason: how many, their share of all failures in [0, 1], and what the reason means."""

    reason: str
    count: int
    share: float
    explanation: str


@dataclass(frozen=True, slots=True)
class TestSet:
    """One test set: charts, failure groups, and a choice of its queries."""

    name: str
    num_queries: int
    charts: Sequence[Chart | Matrix]
    groups: Sequence[FailureGroup]
    queries: Sequence[Query]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on the page.

    Attributes:
        version: Version of the program.
        notices: What a reader must know first: warnings of the run, what the page lacks and why.
        tables: The summary.
        facts: Model, data, schedule and versions, by name.
        parts: Names of the terms in `Hit.contributions`: the parts, then the global feature.
        mask_parts: Names of the part masks, empty without masks.
        mask_size: Rows and columns of a part mask.
        images: Thumbnails as data URLs.
        masks: Part masks of the same images, uint8 (parts, rows, columns), in base64; empty without a network.
    """

    title: str
    version: str
    notices: Sequence[str] = ()
    tables: Sequence[Table] = ()
    facts: Sequence[tuple[str, str]] = ()
    tests: Sequence[TestSet] = ()
    parts: Sequence[str] = ()
    mask_parts: Sequence[str] = ()
    mask_size: tuple[int, int] = (16, 8)
    images: Sequence[str] = ()
    masks: Sequence[str] = ()

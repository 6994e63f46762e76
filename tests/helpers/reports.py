"""A report of invented figures, with file names that try to inject markup."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from pipeline.evaluation.report.model import Chart, FailureGroup, Hit, Matrix, Query, Report, Series, TestSet
from pipeline.formats.table import Table
from pipeline.parts import PARTS

HOSTILE_NAMES = (
    'a"b<img src=x onerror=alert(1)>.jpg',
    "</script><script>alert(2)</script>.jpg",
    "übergröße 🚶 'quoted'.jpg",
)
IMAGES = 12


def invented_report(queries: int = 45) -> Report:
    """Queries with APs spread over [0, 1]; every third one's first hit is correct."""
    rng = np.random.default_rng(0)
    names = [*HOSTILE_NAMES, *(f"query/{i:05d}_c01s01.jpg" for i in range(queries - len(HOSTILE_NAMES)))]
    return Report(
        title="Evaluation of <invented>",
        version="0.0.0",
        notices=["No data set was given: the page has no <b>images</b>."],
        tables=[Table(("Test set", "Rank-1"), (("invented", 0.798),), "Metrics in %", ("Rank-1",))],
        facts=[("backbone", "mobilenet_v2")],
        tests=[
            TestSet(
                name="invented",
                num_queries=200,
                charts=_charts(rng),
                groups=[FailureGroup("nothing shared", 7, 0.25, "Query and nearest image share no visible part.")],
                queries=[_query(rng, name, i) for i, name in enumerate(names)],
            )
        ],
        parts=[*PARTS, "global"],
        mask_parts=PARTS[:4],
        mask_size=(16, 8),
        images=[_image(rng) for _ in range(IMAGES)],
        masks=[base64.b64encode(rng.integers(0, 256, (4, 16, 8), dtype=np.uint8)).decode() for _ in range(IMAGES)],
    )


def _query(rng: np.random.Generator, name: str, number: int) -> Query:
    return Query(
        name=name,
        pid=number,
        camid=1 + number % 3,
        visibility=rng.random(len(PARTS)).tolist(),
        visible=[bool(number % 2), *[True] * (len(PARTS) - 1)],
        image=number % IMAGES,
        ap=1.0 - number / 100,
        first_hit=1 + number % 7,
        fraction=(number % 4) / 4,
        group="nothing shared" if number % 5 == 0 else "",
        hits=[_hit(rng, rank, correct=(number + rank) % 3 == 0) for rank in range(1, 11)],
    )


def _hit(rng: np.random.Generator, rank: int, *, correct: bool) -> Hit:
    weights, distances = rng.dirichlet(np.ones(len(PARTS) + 1)), rng.random(len(PARTS) + 1)
    return Hit(
        name=f"gallery/{rank}.jpg",
        pid=3,
        camid=2,
        visibility=rng.random(len(PARTS)).tolist(),
        visible=[True] * len(PARTS),
        image=rank % IMAGES,
        rank=rank,
        distance=float(weights @ distances),
        correct=correct,
        contributions=[(float(d), float(w), float(d * w)) for d, w in zip(distances, weights, strict=True)],
        shared="upper lower",
    )


def _charts(rng: np.random.Generator) -> list[Chart | Matrix]:
    ranks = list(range(1, 21))
    bars = [Series("visible", rng.random(7).tolist()), Series("hidden", [None] * 7)]
    return [
        Chart("CMC", "line", "rank", "share", [Series("CMC", [1 - 1 / r for r in ranks], ranks)], unit=True),
        Chart("By part", "bar", "part", "mAP", bars, "Queries that show the part.", labels=PARTS, unit=True),
        Matrix("Cameras", "query", ["1", "2"], ["1", "2"], [[None, 0.3], [0.5, None]]),
    ]


def _image(rng: np.random.Generator) -> str:
    pixels = np.full((128, 64, 3), rng.integers(0, 256, 3), np.uint8)
    return "data:image/jpeg;base64," + base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()

"""Two runs on the same queries: what changed, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.evaluation.evaluate import QUERIES_FILE, RESULT_FILE
from pipeline.evaluation.queries import QueryTable
from pipeline.evaluation.result import RANKS, per_cent
from pipeline.matching.intervals import Interval, bootstrap_mean
from pipeline.runtime.files import read_json

COLUMNS = ("Test set", "Metric", "Before>", "Now>", "Difference>", "95 % interval>", "")


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric in two runs, over the queries that both have.

    Attributes:
        metric: mAP, mINP or rank1 and so on.
        before: The other run's figure.
        now: This run's figure.
        interval: Mean and paired bootstrap interval of now - before.
    """

    metric: str
    before: float
    now: float
    interval: Interval

    @property
    def verdict(self) -> str:
        """Nothing where the interval leaves out 0, else a word of caution."""
        if self.interval.low == self.interval.high == 0:
            return "equal"
        return "" if self.interval.low > 0 or self.interval.high < 0 else "can be chance"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on one test set.

    Attributes:
        test_set: Its name.
        queries: Queries that both runs have with a match.
        only_now: Queries with a match in this run alone.
        only_before: Queries with a match in the other run alone.
        differences: One for each metric.
    """

    test_set: str
    queries: int
    only_now: int
    only_before: int
    differences: tuple[Difference, ...]

    def table_rows(self) -> list[tuple[str, ...]]:
        """Rows under `COLUMNS`."""
        return [
            (
                self.test_set,
                one.metric,
                per_cent(one.before),
                per_cent(one.now),
                f"{100 * one.interval.mean:+.1f}",
                f"[{100 * one.interval.low:+.1f}, {100 * one.interval.high:+.1f}]",
                one.verdict,
            )
            for one in self.differences
        ]


def compare(test_set: str, now: QueryTable, before: QueryTable, *, samples: int = 2000) -> Comparison:
    """Compare two tables of queries, query by query.

    Args:
        test_set: Name for the report.
        now: This run's queries.
        before: The other run's.
        samples: Resamplings of the paired differences.

    Raises:
        DataError: The runs share no query with a match.
    """
    place = {key: i for i, key in enumerate(before.keys()) if before.first_hit[i] > 0}
    mine = {key: i for i, key in enumerate(now.keys()) if now.first_hit[i] > 0}
    common = [key for key in mine if key in place]
    if not common:
        raise DataError(
            "the two runs have no query in common",
            expected="results of the same test set",
            hint="queries are told apart by image name and camera",
        )
    a = np.array([mine[key] for key in common])
    b = np.array([place[key] for key in common])
    values: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {
        f"rank{rank}": ((now.first_hit[a] <= rank).astype(float), (before.first_hit[b] <= rank).astype(float))
        for rank in RANKS
    }
    values["mAP"] = now.ap[a], before.ap[b]
    values["mINP"] = now.inp[a], before.inp[b]
    differences = tuple(
        Difference(metric, float(old.mean()), float(new.mean()), bootstrap_mean(new - old, samples=samples))
        for metric, (new, old) in values.items()
    )
    return Comparison(test_set, len(common), len(mine) - len(common), len(place) - len(common), differences)


def find_tables(run: Path) -> Mapping[str, QueryTable]:
    """The tables of queries of an earlier run by test set.

    Args:
        run: A folder that an evaluation wrote, an eval artifact with a folder for each test set, or a result.json
            inside one.

    Raises:
        DataError: There is no result.
        FormatError: A table cannot be read.
    """
    folder = run.parent if run.name == RESULT_FILE else run
    inside = [folder] if (folder / QUERIES_FILE).is_file() else []
    inside = inside or [path.parent for path in sorted(folder.glob(f"*/{QUERIES_FILE}"))]
    if not inside:
        raise DataError(
            "there is no result to compare with" if run.exists() else "there is no such file or folder",
            where=run,
            expected=f"a folder with {QUERIES_FILE}, or with one folder a test set that has it",
        )
    return {_test_set(one): QueryTable.read(one / QUERIES_FILE) for one in inside}


def _test_set(folder: Path) -> str:
    """The test set that a result says it is of; a folder may be called anything."""
    try:
        return str(read_json(folder / RESULT_FILE)["test_set"])
    except (OSError, ValueError, LookupError, TypeError):
        return folder.name

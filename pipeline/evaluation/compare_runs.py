"""Two runs on the same queries: what changed, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, FormatError
from pipeline.evaluation.evaluate import QUERIES_FILE, RESULT_FILE
from pipeline.evaluation.queries import QueryTable
from pipeline.evaluation.result import RANKS, per_cent
from pipeline.matching.intervals import Interval, bootstrap_mean
from pipeline.runtime.files import read_json

COLUMNS = ("Test set", "Metric", "Before>", "Now>", "Difference>", "95 % interval>", "")

_AGAIN = "evaluate anew; the folder was not written to its end, or was changed since"


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

    In an eval artifact a test set has the name of its folder, which is also its key in the artifact's result: two data
    sets may have one name, their folders have not. Elsewhere a folder may be called anything, and the result in it says
    what it is of.

    Args:
        run: A folder that an evaluation wrote, an eval artifact or another folder with one a test set, or a result.json
            inside one.

    Raises:
        DataError: There is no result, or two are of test sets of one name.
        FormatError: A result or a table is missing or cannot be read.
    """
    folder = run.parent if run.name == RESULT_FILE else run
    if (folder / QUERIES_FILE).is_file():
        return {_test_set(folder): QueryTable.read(folder / QUERIES_FILE)}
    names = _names_in_artifact(folder)
    if names:
        return {name: QueryTable.read(folder / name / QUERIES_FILE) for name in names}
    tables: dict[str, QueryTable] = {}
    for path in sorted(folder.glob(f"*/{QUERIES_FILE}")):
        name = _test_set(path.parent)
        if name in tables:
            raise DataError(
                f"two results are of a test set {name!r}, so which one is meant cannot be told",
                where=folder,
                expected="one result for each test set",
                hint=f"name one of the folders in it, as in {path.parent}",
            )
        tables[name] = QueryTable.read(path)
    if not tables:
        raise DataError(
            "there is no result to compare with" if run.exists() else "there is no such file or folder",
            where=run,
            expected=f"a folder with {QUERIES_FILE}, or with one folder a test set that has it",
        )
    return tables


def _test_set(folder: Path) -> str:
    """The name of the test set that a single result is of."""
    place = folder.resolve()
    if place.name in _names_in_artifact(place.parent):
        return place.name
    result = _read_result(folder)
    name = result.get("test_set") if isinstance(result, dict) else None
    if not isinstance(name, str):
        raise FormatError("the result does not name its test set", where=folder / RESULT_FILE, hint=_AGAIN)
    return name


def _names_in_artifact(folder: Path) -> tuple[str, ...]:
    """The folders of an eval artifact; none if this is no such artifact."""
    if not (folder / RESULT_FILE).is_file():
        return ()
    result = _read_result(folder)
    tests = result.get("tests") if isinstance(result, dict) else None
    return tuple(tests) if isinstance(tests, dict) else ()


def _read_result(folder: Path) -> Any:
    path = folder / RESULT_FILE
    try:
        return read_json(path)
    except FileNotFoundError:
        raise FormatError(f"the result lacks its {RESULT_FILE}", where=folder, hint=_AGAIN) from None
    except OSError as error:
        raise FormatError(f"the result cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise FormatError(f"the result is not JSON: {error}", where=path, hint=_AGAIN) from error

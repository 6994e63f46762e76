"""Compare two runs on the same queries: differences of metrics and their paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config import suggestion
from pipeline.errors import DataError
from pipeline.evaluation.queries import QUERIES_FILE, QueryTable
from pipeline.formats.results import RANKS, RESULT_FILE, Interval, load_results
from pipeline.formats.table import Table, Tabular
from pipeline.matching.intervals import bootstrap_mean
from pipeline.runtime.files import write_json


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """One metric in two runs, over the queries that have a match in both, with the interval of now - before."""

    metric: str
    before: float
    now: float
    interval: Interval

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval.low > 0 or self.interval.high < 0


@dataclass(frozen=True, slots=True)
class Comparison(Tabular):
    """Two runs on one test set: how many queries have a match in both runs or in one alone, and the metrics."""

    test_set: str
    queries: int
    only_now: int
    only_before: int
    differences: tuple[MetricDifference, ...]

    def table(self) -> Table:
        """Return one row per metric."""
        rows = []
        for one in self.differences:
            change = one.interval
            significant = "yes" if one.significant else "no"
            rows.append((one.metric, one.before, one.now, change.mean, change.low, change.high, significant))
        columns = ("Metric", "Before", "Now", "Difference", "Low", "High", "Significant")
        title = f"{self.test_set}: difference in % over {self.queries} queries, with its 95 % interval"
        return Table(columns, tuple(rows), title, columns[1:6])

    def save(self, path: Path) -> None:
        """Write the comparison as JSON, whole or not at all."""
        write_json(path, self.to_json())


def compare_runs(test_set: str, now: QueryTable, before: QueryTable, *, samples: int = 2000) -> Comparison:
    """Compare two runs query by query, with `samples` resamplings of the paired differences.

    Raises:
        DataError: The runs share no query with a match.
    """
    rows_before = {key: i for i, key in enumerate(before.keys()) if before.first_hit[i] > 0}
    rows_now = {key: i for i, key in enumerate(now.keys()) if now.first_hit[i] > 0}
    common = [key for key in rows_now if key in rows_before]
    if not common:
        raise DataError(
            f"the two runs have no query of {test_set} in common: now {_first(rows_now)}, before {_first(rows_before)}",
            expected="results of the same test set; image name and camera identify a query",
        )
    values_now = _values(now, [rows_now[key] for key in common])
    values_before = _values(before, [rows_before[key] for key in common])
    differences = []
    for metric, new in values_now.items():
        old = values_before[metric]
        interval = bootstrap_mean(new - old, samples=samples)
        assert interval is not None  # common is not empty
        differences.append(MetricDifference(metric, float(old.mean()), float(new.mean()), interval))
    only = len(rows_now) - len(common), len(rows_before) - len(common)
    return Comparison(test_set, len(common), *only, tuple(differences))


def _values(table: QueryTable, rows: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the metrics of some queries by name."""
    ranks = {f"rank{rank}": (table.first_hit[rows] <= rank).astype(float) for rank in RANKS}
    return ranks | {"mAP": table.ap[rows], "mINP": table.inp[rows]}


def load_queries(run: Path) -> Mapping[str, QueryTable]:
    """Read the query tables of an earlier run by test set.

    Args:
        run: A folder written by an evaluation (one test set), an eval artifact (a folder per test set), or the
            `result.json` in one of them.

    Raises:
        DataError: `run` does not exist.
        FormatError: A result or a query table is missing or cannot be read.
    """
    folder = run.parent if run.name == RESULT_FILE else run
    if not folder.is_dir():
        listed = sorted(each.name for each in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise DataError(
            "no earlier result found",
            where=run,
            expected=f"a folder with {RESULT_FILE}, or that file",
            hint=suggestion(folder.name, listed),
        )
    names = tuple(load_results(folder / RESULT_FILE))
    single = len(names) == 1 and (folder / QUERIES_FILE).is_file()
    return {name: QueryTable.read((folder if single else folder / name) / QUERIES_FILE) for name in names}


def compare_all(now: Mapping[str, QueryTable], before: Mapping[str, QueryTable], where: Path) -> list[Comparison]:
    """Compare the test sets of two runs by name; a single one on both sides is compared whatever its name.

    Raises:
        DataError: The earlier run, in `where`, has none of the test sets, or shares no query with one.
    """
    if len(before) == len(now) == 1:
        before = dict(zip(now, before.values(), strict=True))
    common = [name for name in now if name in before]
    if not common:
        raise DataError(
            f"the earlier run has none of the test sets {', '.join(now)}", where=where, expected=", ".join(before)
        )
    return [compare_runs(name, now[name], before[name]) for name in common]


def _first(keys: Mapping[tuple[str, int], int]) -> str:
    return f"{len(keys)} queries, first {next(iter(keys))[0]!r}" if keys else "no query with a match"

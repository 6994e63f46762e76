"""Two runs compared query by query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import MatchingConfig
from pipeline.errors import DataError, FormatError
from pipeline.evaluation.comparison import compare_all, compare_runs, load_queries
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.queries import QueryTable
from pipeline.formats.results import load_results, save_results
from tests.helpers.evaluation import TestSet, write_features


def save_run(folder: Path, features: Path, rules: dict[str, Any]) -> Path:
    """An eval artifact: a folder per test set and all results in one file."""
    results = []
    for name, rule in rules.items():
        evaluate(features, config=MatchingConfig(rule=rule)).save(folder / name)
        (result,) = load_results(folder / name / "result.json").values()
        results.append(result)
    save_results(folder / "result.json", results)
    return folder


def test_compare_runs__differences_of_the_same_queries(test_set: TestSet) -> None:
    before = evaluate(test_set.features, config=MatchingConfig(rule="all")).queries
    now = evaluate(test_set.features).queries
    comparison = compare_runs("toy", now, before)
    found = {one.metric: one for one in comparison.differences}
    assert found["mAP"].now - found["mAP"].before == pytest.approx(found["mAP"].interval.mean)
    assert found["mAP"].significant
    assert found["mAP"].interval.low > 0
    assert len(comparison.table().rows) == len(found) == 6
    assert comparison.to_json()["differences"][4]["metric"] == "mAP"
    same = compare_runs("toy", now, now)
    assert not any(one.significant for one in same.differences)
    assert all(one.interval.low == one.interval.high == 0 for one in same.differences)


def test_compare_runs__without_a_common_query(test_set: TestSet, tmp_path: Path, rows: list[Any]) -> None:
    now = evaluate(test_set.features).queries
    other = evaluate(write_features(tmp_path / "o.h5", [("x" + row[0], *row[1:]) for row in rows])).queries
    with pytest.raises(DataError, match="x" + rows[0][0]):
        compare_runs("toy", now, other)


def test_load_queries__folder_artifact_or_result_file(test_set: TestSet, tmp_path: Path) -> None:
    found = evaluate(test_set.features)
    found.save(tmp_path / "single")
    for path in (tmp_path / "single", tmp_path / "single" / "result.json"):
        (name, table), *_ = load_queries(path).items()
        assert name == "toy"
        np.testing.assert_array_equal(table.ap, found.queries.ap)
    run = save_run(tmp_path / "run", test_set.features, {"toy": "shrunk"})
    assert list(load_queries(run)) == ["toy"]


def test_compare_all__by_name_or_the_only_one(test_set: TestSet, tmp_path: Path) -> None:
    table = evaluate(test_set.features).queries
    assert [one.test_set for one in compare_all({"a": table}, {"b": table}, tmp_path)] == ["a"]
    assert [one.test_set for one in compare_all({"a": table, "b": table}, {"b": table}, tmp_path)] == ["b"]
    with pytest.raises(DataError, match="a") as caught:
        compare_all({"a": table}, {"x": table, "y": table}, tmp_path)
    assert caught.value.expected == "x, y"


def test_load_queries__what_is_missing_or_damaged_is_named(test_set: TestSet, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run-1a2b", test_set.features, {"toy": "shrunk"})
    with pytest.raises(DataError) as missing:
        load_queries(tmp_path / "run-1a2c")
    assert "run-1a2b" in str(missing.value.hint)
    (run / "toy" / "queries.csv").unlink()
    with pytest.raises(FormatError) as caught:
        load_queries(run)
    assert caught.value.where == str(run / "toy" / "queries.csv")
    for text in ("{", "[]", "{}", '{"format": "sgsfa-result", "format_version": 1, "tests": {"toy": {}}}'):
        (run / "result.json").write_text(text)
        with pytest.raises(FormatError) as caught:
            load_queries(run)
        assert caught.value.where == str(run / "result.json")
    (run / "result.json").unlink()
    with pytest.raises(FormatError, match=r"result\.json"):
        load_queries(run)


def test_query_table__refuses_other_tables(tmp_path: Path) -> None:
    (tmp_path / "queries.csv").write_text("name,ap\na,1\n")
    with pytest.raises(FormatError) as caught:
        QueryTable.read(tmp_path / "queries.csv")
    assert "visible_fraction" in str(caught.value.expected)

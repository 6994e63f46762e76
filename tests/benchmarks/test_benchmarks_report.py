"""Committed results: the files are valid and docs/results.md is what they generate."""

import pytest
from pydantic import ValidationError

from benchmarks.report import PAGE, Column, Result, Row, format_cell, load_results, render_page, render_result


def result(**fields):
    defaults = {
        "section": "method",
        "question": "Which rule?",
        "data": "3 images",
        "device": "CPU",
        "date": "2026-11",
        "command": "sgsfa eval",
        "columns": [Column(key="mAP", label="mAP")],
        "rows": [Row(name="`mean`", values={"mAP": [70.0, 72.0]})],
    }
    return Result(**(defaults | fields))


def test_page__is_generated_from_the_committed_files():
    assert PAGE.read_text(encoding="utf-8") == render_page(load_results()), "run python -m benchmarks.report"


def test_committed_results__have_known_columns_and_one_value_per_seed():
    results = load_results()
    assert results
    for name, entry in results:
        keys = {column.key for column in entry.columns}
        for row in entry.rows:
            assert set(row.values) <= keys, name
            lengths = {len(value) for value in row.values.values() if isinstance(value, list)}
            assert lengths <= {len(entry.seeds)}, name


def test_format_cell__seeds_are_mean_and_range():
    assert format_cell([70.0, 72.0], 1) == "71.0 (70.0 to 72.0)"
    assert format_cell([70.0], 1) == "70.0"
    assert format_cell(15618, 0) == "15,618"
    assert format_cell(None, 1) == ""


def test_render_result__table_has_one_row_per_entry():
    text = render_result("rules", result(row_label="rule"))
    assert "| rule | mAP |" in text
    assert "| `mean` | 71.0 (70.0 to 72.0) |" in text


def test_render_page__limits_are_collected_at_the_end():
    page = render_page([("rules", result(limits=["One seed."]))])
    assert page.endswith("* **Which rule?** One seed.\n")


def test_save__is_read_back_unchanged(tmp_path):
    entry = result(seeds=[0, 1])
    entry.save(tmp_path / "rules.json")
    assert load_results(tmp_path) == [("rules", entry)]


def test_load__unknown_key_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="speling"):
        result(speling="x")

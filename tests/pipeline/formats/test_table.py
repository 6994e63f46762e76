"""Tables of results as text."""

from __future__ import annotations

from pipeline.formats.table import Table


def test_str__aligns_columns_and_scales_fractions() -> None:
    table = Table(("Name", "Rank-1", "Distance"), (("a", 0.5, 0.25), ("longer", None, 1.0)), "Title", ("Rank-1",))
    assert str(table).splitlines() == [
        "Title",
        "Name    Rank-1  Distance",
        "a         50.0     0.250",
        "longer       -     1.000",
    ]
    assert [table.is_number(name) for name in table.columns] == [False, True, True]

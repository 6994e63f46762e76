"""Tables of results: values with the little that is needed to print them."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of values under headings; None where there is none. Columns in `percent` hold fractions, shown in %."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    percent: tuple[str, ...] = ()

    def text_rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows as text: per cent with one decimal, other fractions with three."""
        for row in self.rows:
            yield tuple(
                _text(value, percent=name in self.percent) for name, value in zip(self.columns, row, strict=True)
            )

    def is_number(self, column: str) -> bool:
        """Whether a column holds numbers, to be aligned to the right."""
        index = self.columns.index(column)
        return any(isinstance(row[index], int | float) for row in self.rows)

    def __str__(self) -> str:
        lines = [tuple(self.columns), *self.text_rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        numbers = [self.is_number(name) for name in self.columns]
        text = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, numbers, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *text] if self.title else text)

    def _repr_html_(self) -> str:
        """Draw the table in a notebook."""
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self.text_rows()
        )
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


class Tabular:
    """A result that has a table: it prints as one, draws itself in notebooks, and is saved as JSON."""

    __slots__ = ()

    def table(self) -> Table:
        """Return the result as a table."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        plain: dict[str, Any] = to_jsonable_python(self)
        return plain

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _text(value: Cell, *, percent: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.1f}" if percent else f"{value:.3f}"
    return str(value)

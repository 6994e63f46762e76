"""Draw the tables of result objects in the program's one style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgsfa_cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from pipeline.formats.results import EvaluationResult
    from pipeline.formats.table import Table

_CAMERA_PAIRS = 12
"""More pairs of cameras than these are left to the JSON."""


def draw_table(table: Table) -> RenderableType:
    """Return a table for the terminal."""
    heads = [f"{name}>" if table.is_number(name) else name for name in table.columns]
    return console.table(*heads, rows=list(table.text_rows()), title=table.title or None)


def draw_results(results: Sequence[EvaluationResult]) -> list[RenderableType]:
    """Return everything of evaluation results that a terminal shows: metrics, intervals, groups, gain, notes."""
    from pipeline.formats import results as formats

    made: list[RenderableType] = [draw_table(formats.results_table(results))]
    if (intervals := formats.intervals_table(results)).rows:
        made.append(draw_table(intervals))
    for result in results:
        many = sum(group.by == "cameras" for group in result.breakdown) > _CAMERA_PAIRS
        groups = formats.breakdown_table(result, without=("cameras",) if many else ())
        if groups.rows:
            made.append(draw_table(groups))
        made += [f"{result.test_set}: {line}" for line in _lines(result)]
    return made


def _lines(result: EvaluationResult) -> list[str]:
    lines = []
    if (gain := result.gain) is not None:
        lines.append(
            f"shared parts over visibility ignored: mAP {100 * gain.mean:+.1f} "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] %; {gain.better} queries better, {gain.worse} worse, "
            f"{gain.equal} equal"
        )
    if (rates := result.verification) is not None:
        pairs = zip(rates.false_positive_rates, rates.true_positive_rates, strict=True)
        listed = ", ".join(f"{100 * true:.1f} % at {false:g}" for false, true in pairs)
        lines.append(
            f"true positive rate at a false positive rate: {listed} ({rates.genuine:,} genuine and "
            f"{rates.impostors:,} impostor pairs)"
        )
    return lines + [f"note: {note}" for note in result.notes]

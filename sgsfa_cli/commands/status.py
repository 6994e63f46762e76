"""`sgsfa status`: what is there, and what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgsfa_cli import console
from sgsfa_cli.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    command_app,
    examples,
    load,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.stages.status import StageStatus

app = command_app()

_STYLES = {"fresh": "green", "stale": "yellow", "partial": "cyan", "missing": "dim", "broken": "red"}


@app.command(
    epilog=examples(
        "sgsfa status --preset demo", "sgsfa status -c sgsfa.toml --set train.epochs=60", "sgsfa status --json"
    )
)
def status(
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the state of each stage, and why a stale one no longer fits.

    fresh: there, as the configuration wants it. stale: there, but made from another configuration or other inputs;
    the table names what changed. partial: begun, and the next run goes on. missing: not begun. broken: its manifest
    cannot be read; `sgsfa artifacts prune` removes it.
    """
    from pipeline.stages.status import status as stages_status

    settings = load(config, preset, overrides)
    states = stages_status(settings, progress=console.progress(quiet=quiet))
    console.emit({"stages": states}, json=json, draw=lambda: _draw(states))


def _draw(states: list[StageStatus]) -> RenderableType:
    table = console.table("Stage", "State", "Why", "Where", "Size>", "When", "Took>", rows=[])
    from rich.markup import escape

    for state in states:
        style = _STYLES[state.state]
        table.add_row(
            state.stage,
            f"[{style}]{state.state}[/{style}]",
            escape("\n".join(state.reasons)),
            escape(str(state.path)),
            console.size(state.size) if state.size else "-",
            console.moment(state.finished) if state.finished else "-",
            console.duration(state.seconds) if state.seconds is not None else "-",
        )
    return table

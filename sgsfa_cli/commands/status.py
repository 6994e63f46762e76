"""`sgsfa status`: the state of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    from pipeline.stages.plan import PlannedStage

app = command_app()

_STYLES = {"up to date": "green", "stale": "yellow", "incomplete": "cyan", "missing": "dim"}


@app.command(
    epilog=examples(
        "sgsfa status --preset demo", "sgsfa status -c sgsfa.toml --set train.epochs=60", "sgsfa status --json"
    )
)
def status(
    *,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the state of each stage, and why a stage is stale.

    up to date: finished with the current configuration and inputs. stale: finished with other settings or inputs,
    which are listed. incomplete: interrupted (the next run resumes it) or being built. missing: not started.
    """
    from pipeline.stages.plan import make_plan

    stages = make_plan(load(config, preset, overrides), progress=console.progress(quiet=quiet)).stages
    console.emit({"stages": [_as_data(entry) for entry in stages]}, json=json, draw=lambda: _draw(stages))


def _as_data(entry: PlannedStage) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "stage": entry.name,
        "state": entry.state,
        "reasons": entry.reasons,
        "path": entry.path,
        "size": manifest.size if manifest else _size(entry),
        "finished": manifest.finished if manifest else None,
        "seconds": manifest.seconds if manifest else None,
    }


def _size(entry: PlannedStage) -> int:
    """Return the bytes of an unfinished artifact."""
    return sum(file.stat().st_size for file in entry.path.rglob("*") if file.is_file())


def _draw(stages: tuple[PlannedStage, ...]) -> RenderableType:
    from rich.markup import escape

    table = console.table("Stage", "State", "Why", "Path", "Size>", "Finished", "Time>", rows=[])
    for entry in stages:
        row = _as_data(entry)
        style = _STYLES[entry.state]
        table.add_row(
            entry.name,
            f"[{style}]{entry.state}[/{style}]",
            escape("\n".join(entry.reasons)),
            escape(str(entry.path)),
            console.size(row["size"]) if row["size"] else "-",
            console.moment(row["finished"]) if row["finished"] else "-",
            console.duration(row["seconds"]) if row["seconds"] is not None else "-",
        )
    return table

"""`sgsfa status`: the state of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgsfa_cli import console
from sgsfa_cli.options import command, command_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.config import RunConfig
    from pipeline.stages.plan import PlannedStage

app = command_app()

_STYLES = {"up to date": "green", "stale": "yellow", "incomplete": "cyan", "missing": "dim"}


@command(app, "sgsfa status --preset demo", "sgsfa status -c sgsfa.toml --set train.epochs=60", "sgsfa status --json")
def status(settings: RunConfig) -> None:
    """Show the state of each stage, and why a stage is stale.

    up to date: finished with the current configuration and inputs. stale: finished with other settings or inputs,
    which are listed. incomplete: interrupted (the next run resumes it) or being built. missing: not started.
    """
    from pipeline.stages.plan import make_plan

    stages = [_as_data(entry) for entry in make_plan(settings, progress=console.progress()).stages]
    console.emit({"stages": stages}, lambda: [_table(stages)])


def _as_data(entry: PlannedStage) -> dict[str, Any]:
    manifest = entry.manifest
    unfinished = (file.stat().st_size for file in entry.path.rglob("*") if file.is_file())
    return {
        "stage": entry.name,
        "state": entry.state,
        "reasons": entry.reasons,
        "path": entry.path,
        "size": manifest.size if manifest else sum(unfinished),
        "finished": manifest.finished if manifest else None,
        "seconds": manifest.seconds if manifest else None,
    }


def _table(stages: list[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    rows = [
        (
            row["stage"],
            Text(row["state"], _STYLES[row["state"]]),
            "\n".join(row["reasons"]),
            row["path"],
            console.size(row["size"]) if row["size"] else "-",
            console.moment(row["finished"]) if row["finished"] else "-",
            console.duration(row["seconds"]) if row["seconds"] is not None else "-",
        )
        for row in stages
    ]
    return console.table("Stage", "State", "Why", "Path", "Size>", "Finished", "Time>", rows=rows)

"""`sgsfa data occluded-duke`: Occluded-DukeMTMC from the archive of DukeMTMC-reID and the authors' name lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import JsonOption, QuietOption, examples

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.datasets.occluded_duke_zip import OccludedDukeFolder


def register(app: typer.Typer) -> None:
    """Add the command to the group `sgsfa data`."""
    app.command(
        name="occluded-duke",
        epilog=examples("sgsfa data occluded-duke DukeMTMC-reID.zip --lists Occluded_Duke --out Occluded-Duke"),
    )(occluded_duke)


def occluded_duke(
    archive: Annotated[Path, typer.Argument(metavar="ZIP", help="DukeMTMC-reID.zip, which you must already have.")],
    lists: Annotated[
        Path, typer.Option("--lists", metavar="FOLDER", help="Folder with train.list, query.list and gallery.list.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to create.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Create Occluded-DukeMTMC from the zip file of DukeMTMC-reID and the name lists of its authors.

    If DukeMTMC-reID is already unpacked, no copy is needed: occluded-duke:FOLDER reads the lists beside it. Nothing is
    downloaded. The result is read as occluded-duke:FOLDER.
    """
    from pipeline.datasets.occluded_duke_zip import extract_occluded_duke

    created = extract_occluded_duke(archive, lists, out, progress=console.progress(quiet=quiet))
    console.emit(created, json=json, draw=lambda: _draw(created))


def _draw(created: OccludedDukeFolder) -> RenderableType:
    from rich.text import Text

    counts = ", ".join(f"{folder} {count:,}" for folder, count in created.images.items())
    return Text(
        f"{counts}\nqueries that are gallery files too: {created.double:,}\n"
        f"read it as occluded-duke:{created.root}; `sgsfa data check` compares the counts with the published ones"
    )

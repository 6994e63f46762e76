"""`sgsfa data occluded-duke`: Occluded-DukeMTMC from the archive of DukeMTMC-reID and the authors' name lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import JsonOption, QuietOption, examples

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.datasets.occluded_duke_zip import Made


def register(app: typer.Typer) -> None:
    """Add the command to the group `sgsfa data`."""
    app.command(
        name="occluded-duke",
        epilog=examples("sgsfa data occluded-duke DukeMTMC-reID.zip --lists Occluded_Duke --out Occluded-Duke"),
    )(occluded_duke)


def occluded_duke(
    archive: Annotated[Path, typer.Argument(metavar="ZIP", help="DukeMTMC-reID.zip, which you must hold already.")],
    lists: Annotated[
        Path, typer.Option("--lists", metavar="FOLDER", help="Where train.list, query.list and gallery.list are.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make Occluded-DukeMTMC from the zip file of DukeMTMC-reID and the name lists of its authors.

    Whoever has DukeMTMC-reID unpacked needs no copy: occluded-duke:FOLDER reads the lists beside it as they are.
    Nothing is downloaded. Read the result as occluded-duke:FOLDER.
    """
    from pipeline.datasets.occluded_duke_zip import make_from_zip

    made = make_from_zip(archive, lists, out, progress=console.progress(quiet=quiet))
    console.emit(made, json=json, draw=lambda: _drawn(made))


def _drawn(made: Made) -> RenderableType:
    from rich.text import Text

    counts = ", ".join(f"{folder} {count:,}" for folder, count in made.images.items())
    return Text(
        f"{counts}\nqueries that are gallery files too: {made.double:,}\n"
        f"read it as occluded-duke:{made.root}; `sgsfa data check` compares the counts with the published ones"
    )

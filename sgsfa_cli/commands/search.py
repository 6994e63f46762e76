"""`sgsfa search`: find the person of an image in a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import METRIC, RULE, VISIBILITY, CheckpointOption, command, command_app, device
from sgsfa_cli.tables import draw_table

if TYPE_CHECKING:
    from pipeline.config import RunConfig

app = command_app()


@command(
    app,
    "sgsfa search person.jpg --gallery photos",
    "sgsfa search person.jpg --gallery features.h5 --checkpoint model.safetensors",
    "sgsfa search a.jpg b.jpg -g features.h5 --checkpoint model.safetensors --top 20 --json",
    sets=(RULE, METRIC, VISIBILITY, device("matching.device extract.device")),
)
def search(
    *,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Query images, each a crop of one person.")],
    gallery: Annotated[
        str,
        typer.Option("--gallery", "-g", metavar="GALLERY", help="A features file of any size, a folder or KIND:PATH."),
    ],
    checkpoint: CheckpointOption = Path("builtin"),
    top: Annotated[int, typer.Option("--top", "-k", min=1, metavar="K", help="Gallery images per query.")] = 10,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Faster in large features files; may miss some (extra faiss).")
    ] = False,
    settings: RunConfig,
) -> None:
    """Find the nearest gallery images of each query, with the distance of every shared part.

    The search is exact, unless --approximate is given, and its memory does not grow with a features file.
    """
    from pipeline.evaluation.search import search_gallery
    from pipeline.features.extract import embed_for_search

    progress = console.progress()
    query, others = embed_for_search(images, gallery, checkpoint, settings.extract, progress=progress)
    found = search_gallery(query, others, k=top, config=settings.matching, approximate=approximate, progress=progress)
    console.emit(found.to_json(), lambda: [draw_table(found.table())])

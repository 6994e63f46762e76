"""`sgsfa search`: find the person of an image in a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import (
    CheckpointOption,
    ConfigOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    command_app,
    examples,
    load,
    overriding,
)

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa search person.jpg --gallery photos",
        "sgsfa search person.jpg --gallery features.h5 --checkpoint model.safetensors",
        "sgsfa search a.jpg b.jpg -g features.h5 --checkpoint model.safetensors --top 20 --json",
    )
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
    rule: Annotated[str | None, typer.Option(metavar="RULE", help="shrunk, mean, sum, query or all.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="METRIC", help="cosine or euclidean.")] = None,
    visibility: Annotated[str | None, typer.Option(metavar="KIND", help="hard or soft.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the nearest gallery images of each query, with the distance of every shared part.

    The search is exact, unless --approximate is given, and its memory does not grow with a features file.
    """
    from pipeline.evaluation.search import search_gallery
    from pipeline.features.extract import embed_for_search
    from sgsfa_cli.tables import draw_table

    options = {
        "matching.rule": rule,
        "matching.metric": metric,
        "matching.visibility": visibility,
        "matching.device": device,
        "extract.device": device,
    }
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    progress = console.progress(quiet=quiet)
    query, others = embed_for_search(images, gallery, checkpoint, settings.extract, progress=progress)
    found = search_gallery(query, others, k=top, config=settings.matching, approximate=approximate, progress=progress)
    console.emit(found.to_json(), json=json, draw=lambda: draw_table(found.table()))

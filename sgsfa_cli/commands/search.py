"""`sgsfa search`: find the person of an image in a gallery of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    overriding,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.evaluation.explain import Found

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa search person.jpg --gallery features.h5 --checkpoint model.safetensors",
        "sgsfa search a.jpg b.jpg -g features.h5 --checkpoint model.safetensors --top 20 --json",
    )
)
def search(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Crops of the people to look for.")],
    gallery: Annotated[
        Path, typer.Option("--gallery", "-g", metavar="FILE", help="Features to search in, of any size.")
    ],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="FILE", help="The network that made the gallery's features.")
    ],
    top: Annotated[int, typer.Option("--top", "-k", min=1, metavar="K", help="How many to list.")] = 10,
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
    """Find the gallery images that show the person of an image, with the distance of each part that both show.

    The search is exact, and its memory does not grow with the gallery.
    """
    from pipeline.evaluation.explain import find
    from pipeline.features.extract import embed
    from pipeline.formats.features import FeatureFile

    options: dict[str, Any] = {
        "matching.rule": rule,
        "matching.metric": metric,
        "matching.visibility": visibility,
        "matching.device": device,
        "extract.device": device,
    }
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    flip = FeatureFile.open(gallery).attributes.get("flip", settings.extract.flip)
    # Features of one view and of both lie apart; the gallery's are there already.
    query = embed(images, checkpoint, settings.extract.model_copy(update={"flip": bool(flip)}))
    found = find(query, gallery, k=top, config=settings.matching, progress=console.progress(quiet=quiet))
    console.emit({"found": found}, json=json, draw=lambda: _draw(found))


def _draw(found: tuple[Found, ...]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape

    parts: list[RenderableType] = []
    for one in found:
        shown = ", ".join(one.visible) or "no part, so the whole body decides"
        rows = [
            (
                hit.rank,
                f"{hit.distance:.3f}",
                hit.name,
                hit.pid if hit.pid >= 0 else "-",
                hit.camid if hit.camid >= 0 else "-",
                "  ".join(f"{part} {distance:.2f}" for part, distance in hit.shared.items()) or "nothing shared",
            )
            for hit in one.hits
        ]
        title = escape(f"{one.image} (visible: {shown})")
        heads = ("Rank>", "Distance>", "Image", "Person>", "Camera>", "Shared parts and their distances")
        parts.append(console.table(*heads, rows=rows, title=title))
    return Group(*parts)

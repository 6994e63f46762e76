"""`sgsfa compare`: two images, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import ConfigOption, JsonOption, PresetOption, SetOption, command_app, examples, load, overriding

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.evaluation.explain import Pair

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa compare a.jpg b.jpg --checkpoint model.safetensors",
        "sgsfa compare a.jpg b.jpg --checkpoint model.safetensors --rule mean --json",
    )
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A crop of a person.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another crop.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", metavar="FILE", help="A trained network.")],
    rule: Annotated[str | None, typer.Option(metavar="RULE", help="shrunk, mean, sum, query or all.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="METRIC", help="cosine or euclidean.")] = None,
    visibility: Annotated[str | None, typer.Option(metavar="KIND", help="hard or soft.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two images: the distance, the parts that both show, and the distance of each part.

    A distance alone does not say whether two images show the same person: that takes a threshold, and
    `sgsfa eval --verification` tells what rates of error a threshold buys on a test set.
    """
    from pipeline.evaluation.explain import compare_pair
    from pipeline.features.extract import embed

    options: dict[str, Any] = {
        "matching.rule": rule,
        "matching.metric": metric,
        "matching.visibility": visibility,
        "matching.device": device,
        "extract.device": device,
    }
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    pair = compare_pair(embed([first, second], checkpoint, settings.extract), settings.matching)
    console.emit(pair, json=json, draw=lambda: _draw(pair))


def _draw(pair: Pair) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape

    rows = [
        (
            part.name,
            "yes" if part.visible_first else "no",
            "yes" if part.visible_second else "no",
            f"{part.distance:.3f}" if part.distance is not None else "-",
            "counts" if part.counts else "",
        )
        for part in pair.parts
    ]
    shared = ", ".join(part.name for part in pair.parts if part.counts and part.name != "whole body")
    return Group(
        f"{escape(pair.first)} and {escape(pair.second)}: distance [bold]{pair.distance:.3f}[/bold] "
        f"({pair.rule} rule; parts compared: {shared or 'none'})",
        console.table("Part", "In A", "In B", "Distance>", "", rows=rows),
    )

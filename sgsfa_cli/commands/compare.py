"""`sgsfa compare`: two images, part by part."""

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
    SetOption,
    command_app,
    examples,
    load,
    overriding,
)

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa compare a.jpg b.jpg",
        "sgsfa compare a.jpg b.jpg --out pair.html",
        "sgsfa compare a.jpg b.jpg --checkpoint model.safetensors --rule mean --json",
    )
)
def compare(
    *,
    first: Annotated[Path, typer.Argument(metavar="A", help="A crop of a person.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another crop.")],
    checkpoint: CheckpointOption = Path("builtin"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Draw the pair: a page (.html) or a figure (.png)."),
    ] = None,
    rule: Annotated[str | None, typer.Option(metavar="RULE", help="shrunk, mean, sum, query or all.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="METRIC", help="cosine or euclidean.")] = None,
    visibility: Annotated[str | None, typer.Option(metavar="KIND", help="hard or soft.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two images: their distance, and what each part contributes to it.

    A distance alone does not decide whether two images show the same person; that takes a threshold.
    `sgsfa eval --verification` reports the error rates of thresholds on a test set.
    """
    from pipeline.evaluation.explain import explain_pair
    from pipeline.evaluation.report.page import save
    from pipeline.evaluation.report.pair import draw_pair, pair_report
    from pipeline.features.embedder import Embedder, embed
    from pipeline.matching.distance import MatchingRule
    from sgsfa_cli.tables import draw_table

    options = {
        "matching.rule": rule,
        "matching.metric": metric,
        "matching.visibility": visibility,
        "matching.device": device,
        "extract.device": device,
    }
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])
    _check_suffix(out)
    paths, matching_rule = [first, second], MatchingRule.from_config(settings.matching)
    images = embed(paths, checkpoint, settings.extract)
    pair = explain_pair(images.select(slice(0, 1)), images.select(slice(1, 2)), matching_rule)
    if out is not None:
        masks = Embedder.load(checkpoint, settings.extract).part_masks(paths) if images.part_dim else None
        if out.suffix == ".png":
            draw_pair(out, paths, pair, masks)
        else:
            save(pair_report(paths, images, matching_rule, masks), out)
    console.emit(pair.to_json(), json=json, draw=lambda: draw_table(pair.table()))


def _check_suffix(out: Path | None) -> None:
    from pipeline.errors import ConfigError

    if out is not None and out.suffix not in (".html", ".png"):
        raise ConfigError("pairs are drawn as .html or .png", where=out, hint=f"for example {out.with_suffix('.html')}")

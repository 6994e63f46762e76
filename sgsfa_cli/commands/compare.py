"""`sgsfa compare`: two images, part by part."""

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
    "sgsfa compare a.jpg b.jpg",
    "sgsfa compare a.jpg b.jpg --out pair.html",
    "sgsfa compare a.jpg b.jpg --checkpoint model.safetensors --rule mean --json",
    sets=(RULE, METRIC, VISIBILITY, device("matching.device extract.device")),
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
    settings: RunConfig,
) -> None:
    """Compare two images: their distance, and what each part contributes to it.

    A distance alone does not decide whether two images show the same person; that takes a threshold.
    `sgsfa eval --verification` reports the error rates of thresholds on a test set.
    """
    from pipeline.errors import ConfigError
    from pipeline.evaluation.explain import explain_pair
    from pipeline.evaluation.report.page import save
    from pipeline.evaluation.report.pair import draw_pair, pair_report
    from pipeline.features.embedder import Embedder
    from pipeline.matching.distance import MatchingRule

    if out is not None and out.suffix not in (".html", ".png"):
        raise ConfigError("pairs are drawn as .html or .png", where=out, hint=f"for example {out.with_suffix('.html')}")
    paths, rule = [first, second], MatchingRule.from_config(settings.matching)
    network = Embedder.load(checkpoint, settings.extract)
    images = network.embed(paths)
    pair = explain_pair(images.select(slice(0, 1)), images.select(slice(1, 2)), rule)
    if out is not None:
        masks = network.part_masks(paths) if images.part_dim else None
        if out.suffix == ".png":
            draw_pair(out, paths, pair, masks)
        else:
            save(pair_report(paths, images, rule, masks), out)
    console.emit(pair.to_json(), lambda: [draw_table(pair.table())])

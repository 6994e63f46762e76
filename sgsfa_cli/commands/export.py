"""`sgsfa export`: a checkpoint as an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import JsonOption, QuietOption, command_app, examples

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.features.export import ExportReport

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa export model.safetensors --out model.onnx",
        "sgsfa export model.safetensors --out model.onnx --flip",
    )
)
def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX model to write.")],
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A trained network, or builtin: the one of this package.")
    ] = Path("builtin"),
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint as an ONNX model, compared with the network before it is kept.

    It takes uint8 images and gives the features that `sgsfa extract` writes; docs/tasks/export.md says how to use them.
    """
    from pipeline.features.export import export as run_export
    from pipeline.formats.checkpoint import resolve_checkpoint

    report = run_export(out, resolve_checkpoint(checkpoint), flip=flip, progress=console.progress(quiet=quiet))
    console.emit(report, json=json, draw=lambda: _draw(report))


def _draw(report: ExportReport) -> Table:
    rows = [
        (name, " x ".join(map(str, ("B", *shape))), f"{report.differences[name]:.1g}")
        for name, shape in report.outputs.items()
    ]
    title = f"{report.path}: images B x {report.height} x {report.width} x 3, uint8 RGB"
    return console.table("Output", "Shape", "Largest difference from the network>", rows=rows, title=title)

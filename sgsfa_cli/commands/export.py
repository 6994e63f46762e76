"""`sgsfa export`: a checkpoint as an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import CheckpointArgument, command, command_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.features.export import ExportReport

app = command_app()


@command(
    app,
    "sgsfa export model.safetensors --out model.onnx",
    "sgsfa export model.safetensors --out model.onnx --flip --fp16",
    "sgsfa export --single-vector --out tracker.onnx",
)
def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX model to write.")],
    checkpoint: CheckpointArgument = Path("builtin"),
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = False,
    single_vector: Annotated[
        bool, typer.Option("--single-vector", help="(N, 3, H, W) normalised images to (N, D) vectors, for trackers.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16.")] = False,
) -> None:
    """Export a checkpoint as an ONNX model that is verified against the network.

    It takes uint8 images and returns the features that `sgsfa extract` writes, or with --single-vector one vector per
    image; docs/tasks/export.md shows how to use it.
    """
    from pipeline.features.export import ExportOptions
    from pipeline.features.export import export as run_export

    report = run_export(out, checkpoint, ExportOptions(flip=flip, single_vector=single_vector, fp16=fp16))
    console.emit(report, lambda: [_table(report)])


def _table(report: ExportReport) -> RenderableType:
    rows = [
        (name, " x ".join(map(str, ("B", *shape))), f"{report.differences[name]:.1g}")
        for name, shape in report.outputs.items()
    ]
    kind = "float32, normalised RGB" if report.input[0] == 3 else "uint8 RGB"
    title = f"{report.path}: images B x {' x '.join(map(str, report.input))}, {kind}"
    return console.table("Output", "Shape", "Largest difference from the network>", rows=rows, title=title)

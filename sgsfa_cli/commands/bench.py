"""`sgsfa bench`: speed of a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import BATCH_SIZE, FLIP, CheckpointArgument, command, command_app, device
from sgsfa_cli.tables import draw_table

if TYPE_CHECKING:
    from pipeline.config import RunConfig

app = command_app()


@command(
    app,
    "sgsfa bench",
    "sgsfa bench model.safetensors --device cuda --batch-size 256",
    sets=(FLIP, device("extract.device"), BATCH_SIZE),
)
def bench(
    checkpoint: CheckpointArgument = Path("builtin"),
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="Time for each measurement.")] = 3.0,
    *,
    settings: RunConfig,
) -> None:
    """Measure images/s and latency of PyTorch in float32 and bfloat16 and of ONNX Runtime on this machine.

    Differences are from PyTorch in float32, as a share of the largest value. Other programs that run meanwhile slow
    everything down.
    """
    from pipeline.features.bench import bench as run_bench

    report = run_bench(checkpoint, settings.extract, seconds=seconds, progress=console.progress())
    console.emit(report, lambda: [draw_table(report.table()), *(f"not measured: {each}" for each in report.missing)])

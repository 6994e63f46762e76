"""`sgsfa extract`: features of the test sets of a run, or of any images with any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgsfa_cli import console
from sgsfa_cli.options import BATCH_SIZE, FLIP, SplitOption, amp, command, command_app, device, refuse, run_until

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs

app = command_app()

_USAGE = "sgsfa extract [--checkpoint FILE] --data KIND:PATH --out FILE"


@command(
    app,
    "sgsfa extract --preset demo",
    "sgsfa extract --checkpoint model.safetensors --data market1501:/data/Market-1501 --out features.h5",
    "sgsfa extract --data folder:photos --out photos.npz --format npz",
    sets=(FLIP, amp("extract.amp"), device("extract.device"), BATCH_SIZE),
)
def extract(
    *,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images; `sgsfa data list` lists kinds.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint file; with --data by default builtin, the model in this package.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The features file to write.")] = None,
    split: SplitOption = None,
    file_format: Annotated[
        Literal["h5", "npz"] | None,
        typer.Option("--format", help="HDF5 or a NumPy archive; by default from the suffix of --out."),
    ] = None,
    settings: RunConfig,
) -> RejectedInputs | None:
    """Extract features of the test sets of a run, or, with --data and --out, of any images.

    An interrupted extraction resumes. Images that cannot be read are listed at the end, and the command exits with 3.
    Under torchrun the processes share the images.
    """
    from pipeline.datasets.preview import parse_splits
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError, RejectedInputs
    from pipeline.features.extract import extract_file

    if data is None and checkpoint is None and out is None:
        refuse({"--split": split, "--format": file_format}, "--data and --out", expected=_USAGE)
        return _extract_run(settings)
    if data is None or out is None:
        raise ConfigError(
            f"missing: {', '.join(name for name, value in (('--data', data), ('--out', out)) if value is None)}",
            expected=_USAGE,
            hint="without both, the test sets of the configured run are extracted",
        )
    splits = parse_splits(split or ["query", "gallery", "all"])
    dataset = open_dataset(data, expect_counts=settings.data.expect_counts)
    report = extract_file(
        out,
        dataset=dataset,
        records=dataset.split(*splits),
        checkpoint=checkpoint or settings.extract.checkpoint or Path("builtin"),
        config=settings.extract,
        as_npz=out.suffix == ".npz" if file_format is None else file_format == "npz",
        progress=console.progress(),
    )
    rate = f", {report.images_per_second:.1f} images/s" if report.images_per_second else ", already complete"
    rows = [
        ("images", report.done),
        ("time", console.duration(report.seconds) + rate),
        ("features", out),
    ]
    console.emit(
        {"features": out, **console.plain(report)}, lambda: [console.table("", "", rows=rows, title="Extraction")]
    )
    return RejectedInputs("extract", report.failed, total=report.total) if report.failed else None


def _extract_run(settings: RunConfig) -> RejectedInputs | None:
    from pipeline.formats.feature_file import FeatureFile

    report, rejected = run_until(settings, "extract")
    outcome = report.stages[-1]
    counts = [(path, len(FeatureFile.open(path).rows)) for path in sorted(outcome.path.glob("*/*.h5"))]
    files = [{"path": path, "images": images} for path, images in counts]
    result = {"action": outcome.action, "folder": outcome.path, "files": files}
    console.emit(result, lambda: [console.table("Features", "Images>", rows=counts)])
    return rejected

"""`sgsfa extract`: features of the test sets of a run, or of any images with any checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

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
    warn_of_defaults,
)

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.datasets.records import Split

app = command_app()

_SPLITS = ("train", "query", "gallery", "all")


@app.command(
    epilog=examples(
        "sgsfa extract --preset demo",
        "sgsfa extract --checkpoint model.safetensors --data market1501:/data/Market-1501 --out features.h5",
        "sgsfa extract --data folder:photos --out photos.npz --format npz",
    )
)
def extract(
    *,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images; `sgsfa data list` lists kinds.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="A checkpoint file; with --data by default builtin, the model in this package.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The features file to write.")] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="SPLIT", help="Only these images: train, query, gallery or all. Repeatable."),
    ] = None,
    file_format: Annotated[
        Literal["h5", "npz"] | None,
        typer.Option("--format", help="HDF5 or a NumPy archive; by default from the suffix of --out."),
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = None,
    amp: Annotated[str | None, typer.Option(metavar="PRECISION", help="Mixed precision: off, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per batch.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Extract features of the test sets of a run, or, with --data and --out, of any images.

    An interrupted extraction resumes. Images that cannot be read are listed at the end, and the command exits with 3.
    Under torchrun the processes share the images.
    """
    options = {"flip": flip, "amp": amp, "device": device, "batch_size": batch_size}
    settings = load(config, preset, [*(overrides or ()), *overriding(options, "extract")])
    if data is None and checkpoint is None and out is None:
        if split or file_format:
            from pipeline.errors import ConfigError

            raise ConfigError(
                "--split and --format need --data and --out",
                expected="sgsfa extract [--checkpoint FILE] --data KIND:PATH --out FILE",
            )
        warn_of_defaults(settings, config, preset)
        _extract_run(settings, json=json, quiet=quiet)
        return
    network = checkpoint or settings.extract.checkpoint or Path("builtin")
    request = _Request(data, network, out, split or ["query", "gallery", "all"])
    _extract_images(settings, request, file_format, json=json, quiet=quiet)


def _extract_run(settings: RunConfig, *, json: bool, quiet: bool) -> None:
    from pipeline.errors import RejectedInputs
    from pipeline.formats.feature_file import FeatureFile
    from pipeline.stages.run import run_stages

    report = run_stages(settings, until="extract", progress=console.progress(quiet=quiet))
    outcome = report.stages[-1]
    counts = [(path, len(FeatureFile.open(path).rows)) for path in sorted(outcome.path.glob("*/*.h5"))]
    console.emit(
        {
            "action": outcome.action,
            "folder": outcome.path,
            "files": [{"path": path, "images": images} for path, images in counts],
        },
        json=json,
        draw=lambda: console.table("Features", "Images>", rows=counts),
    )
    if report.rejected:
        raise RejectedInputs("extract", report.rejected, total=outcome.total)


@dataclass(frozen=True)
class _Request:
    """What to extract: the values of --data, --checkpoint, --out and --split."""

    data: str | None
    checkpoint: Path
    out: Path | None
    splits: list[str]


def _extract_images(
    settings: RunConfig, request: _Request, file_format: str | None, *, json: bool, quiet: bool
) -> None:
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError, RejectedInputs
    from pipeline.features.extract import extract_file

    data, checkpoint, out = request.data, request.checkpoint, request.out
    if data is None or out is None:
        given = {"--data": data, "--out": out}
        raise ConfigError(
            f"missing: {', '.join(name for name, value in given.items() if value is None)}",
            expected="sgsfa extract [--checkpoint FILE] --data KIND:PATH --out FILE",
            hint="without both, the test sets of the configured run are extracted",
        )
    if unknown := sorted(set(request.splits) - set(_SPLITS)):
        raise ConfigError(f"unknown split {unknown[0]!r}", where="--split", expected=" | ".join(_SPLITS))
    dataset = open_dataset(data, expect_counts=settings.data.expect_counts)
    report = extract_file(
        out,
        dataset=dataset,
        records=dataset.split(*cast("list[Split]", request.splits)),
        checkpoint=checkpoint,
        config=settings.extract,
        as_npz=out.suffix == ".npz" if file_format is None else file_format == "npz",
        progress=console.progress(quiet=quiet),
    )
    rows = [
        ("images", report.done),
        ("time", f"{console.duration(report.seconds)}, {report.images_per_second:.1f} images/s"),
        ("features", out),
    ]
    console.emit({"features": out, **console.plain(report)}, json=json, draw=lambda: console.table("", "", rows=rows))
    if report.failed:
        raise RejectedInputs("extract", report.failed, total=report.total)

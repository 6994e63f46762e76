"""`sgsfa extract`: features of a run's test sets, or of any images with any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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
        "sgsfa extract --checkpoint model.safetensors --data folder:photos --out photos.h5 --flip",
    )
)
def extract(
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images; `sgsfa data list` names kinds.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="A model.safetensors of `sgsfa train`.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The features file to write.")] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="SPLIT", help="Only these images: train, query, gallery or all. Repeatable."),
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = None,
    amp: Annotated[str | None, typer.Option(metavar="PRECISION", help="Mixed precision: off, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images a forward.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute features: of the test sets of a run, or with --checkpoint, --data and --out of any images.

    An extraction that is stopped or killed goes on where it was. Images that cannot be read are listed at the end,
    and the command ends with 3. Under torchrun the processes share the images.
    """
    options = {"flip": flip, "amp": amp, "device": device, "batch_size": batch_size}
    settings = load(config, preset, [*(overrides or ()), *overriding(options, "extract")])
    if data is None and checkpoint is None and out is None:
        if split:
            from pipeline.errors import ConfigError

            raise ConfigError(
                "--split goes with --data, --checkpoint and --out",
                hint="the configured run extracts the queries and the gallery of its test sets",
            )
        warn_of_defaults(settings, config, preset)
        _extract_run(settings, json=json, quiet=quiet)
    else:
        _extract_images(settings, data, checkpoint, out, split, json=json, quiet=quiet)


def _extract_run(settings: RunConfig, *, json: bool, quiet: bool) -> None:
    from pipeline.errors import RejectedInputs
    from pipeline.formats.features import FeatureFile
    from pipeline.stages.run import run_stages

    report = run_stages(settings, until="extract", progress=console.progress(quiet=quiet))
    outcome = report.stages[-1]
    files = {path: FeatureFile.open(path) for path in sorted(outcome.path.glob("*/*.h5"))}
    console.emit(
        {
            "action": outcome.action,
            "folder": outcome.path,
            "files": [{"path": path, "images": file.total} for path, file in files.items()],
        },
        json=json,
        draw=lambda: console.table("Features", "Images>", rows=[(path, file.total) for path, file in files.items()]),
    )
    if report.rejected:
        raise RejectedInputs("extract", report.rejected, total=outcome.total)


def _extract_images(
    settings: RunConfig,
    data: str | None,
    checkpoint: Path | None,
    out: Path | None,
    split: list[str] | None,
    *,
    json: bool,
    quiet: bool,
) -> None:
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError, RejectedInputs
    from pipeline.features.extract import extract as run_extraction

    checkpoint = checkpoint or settings.extract.checkpoint
    missing = [
        name for name, value in (("--data", data), ("--checkpoint", checkpoint), ("--out", out)) if value is None
    ]
    if data is None or checkpoint is None or out is None:
        raise ConfigError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            expected="sgsfa extract --checkpoint FILE --data KIND:PATH --out FILE",
            hint="without all three, the test sets of the configured run are extracted",
        )
    if strange := sorted(set(split or ()) - set(_SPLITS)):
        raise ConfigError(f"there is no split {strange[0]!r}", where="--split", expected=" | ".join(_SPLITS))
    dataset = open_dataset(data, expect_counts=settings.data.expect_counts)
    chosen = cast("list[Split]", split or ["query", "gallery", "all"])
    report = run_extraction(
        out,
        dataset=dataset,
        records=dataset.split(*chosen),
        checkpoint=checkpoint,
        config=settings.extract,
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

"""`sgsfa data synth`: render a data set of occluded people with true label maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console

if TYPE_CHECKING:
    from pipeline.config import SynthConfig
    from sgsfa_synth.dataset import DatasetSummary


def synth(
    *,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or unfinished folder.")],
    preset: Annotated[
        str, typer.Option("--preset", "-p", metavar="NAME", help="tiny, demo, benchmark or transfer.")
    ] = "demo",
    ids: Annotated[int | None, typer.Option(help="Identities, train and test, without distractors.")] = None,
    cameras: Annotated[int | None, typer.Option(help="Cameras; each sees every identity.")] = None,
    shots: Annotated[int | None, typer.Option(help="Images per identity and camera.")] = None,
    occlusion: Annotated[float | None, typer.Option(help="Share of occluded training images, 0 to 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Image size in pixels, as in 256x128.")] = None,
    tone: Annotated[float | None, typer.Option(help="Strength of colour casts, 0 to 1.")] = None,
    backdrop: Annotated[
        float | None, typer.Option(help="Share of images with the camera's own background, 0 to 1.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Worker processes; -1: one per core.")] = None,
) -> None:
    """Render identities in front of cameras, partly occluded, with the true label of every pixel.

    The same options give the same bytes for any --jobs. An interrupted run resumes when it is repeated with the same
    options. The preset transfer renders training data for networks that are applied to real images. Read the result as
    synthetic:OUT.
    """
    from pipeline.store.lock import exclusive
    from pipeline.store.output import storage_errors
    from sgsfa_synth.dataset import render_dataset

    given: dict[str, Any] = {"ids": ids, "cameras": cameras, "shots": shots, "occlusion": occlusion, "seed": seed}
    given |= {"tone": tone, "backdrop": backdrop, "jobs": jobs}
    if size is not None:
        given["height"], given["width"] = _size(size)
    config = _config(preset, {name: value for name, value in given.items() if value is not None})
    folder = out.resolve()
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f"{folder.name}.lock"), out, "data set"):
            summary = render_dataset(out, config, progress=console.progress())
    console.emit(summary, lambda: _draw(summary))


def _size(text: str) -> tuple[int, int]:
    from pipeline.errors import ConfigError

    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size", where="--size", expected="HEIGHTxWIDTH in pixels, as in 256x128")
    return int(match[1]), int(match[2])


def _config(preset: str, given: dict[str, Any]) -> SynthConfig:
    from pydantic import ValidationError

    from pipeline.config import SynthConfig, suggestion
    from pipeline.errors import ConfigError
    from sgsfa_synth.presets import PRESETS

    if preset not in PRESETS:
        raise ConfigError(
            f"preset {preset!r} not found",
            where="--preset",
            expected=" | ".join(PRESETS),
            hint=suggestion(preset, PRESETS),
        )
    try:
        return SynthConfig.model_validate({**PRESETS[preset].model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = "--size" if name in ("height", "width") else f"--{name}"
        raise ConfigError(f"{name} = {first['input']!r}: {first['msg']}", where=option) from error


def _draw(summary: DatasetSummary) -> console.Drawn:
    rows = []
    for name, split in summary.statistics["splits"].items():
        visible = split["visible share of the occluded"]
        shares = "{minimum:.2f} to {maximum:.2f}, median {median:.2f}".format(**visible) if visible else ""
        rows.append((name, f"{split['images']:,}", f"{split['identities']:,}", f"{split['occluded']:,}", shares))
    speed = f", {60 * summary.rendered / summary.seconds:,.0f} per minute" if summary.rendered else ""
    return [
        console.table("Split", "Images>", "Identities>", "Occluded>", "Visible share if occluded", rows=rows),
        f"{summary.rendered:,} of {summary.images:,} images rendered in {console.duration(summary.seconds)}{speed}",
        f"read as synthetic:{summary.root}",
    ]

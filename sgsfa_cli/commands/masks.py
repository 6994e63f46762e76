"""`sgsfa masks`: build, inspect and export part masks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from rich.console import RenderableType

    from pipeline.masks.build import MaskReport
    from pipeline.masks.inspect import FileDescription, ImageDescription
    from pipeline.masks.stats import MaskStats
    from pipeline.parsing.labels import Grouping, LabelSet

app = command_app(
    "Build, inspect and export part masks.",
    "sgsfa masks build folder:photos",
    "sgsfa masks labels lip-20",
)

log = logging.getLogger("sgsfa.cli")

DEFAULT_OUT = Path("masks.h5")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file.")]
ImagesOption = Annotated[
    str,
    typer.Option(
        "--data", "-d", metavar="KIND:PATH", help="The images: a data set, or the folder they were built from."
    ),
]


@app.command(
    epilog=examples(
        "sgsfa masks build folder:photos --out photos.h5",
        "sgsfa masks build market1501:/data/Market-1501 --split train --parser schp:exp-schp-201908261155-lip.pth",
        "sgsfa masks build -c sgsfa.toml",
    )
)
def build(
    *,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND:PATH",
            help="A data set or a folder of images. Without it, the stage `masks` of the configured run is built.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The mask file to build, by default masks.h5.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Use only train, query or gallery images. Repeatable.")
    ] = None,
    parser: Annotated[
        str | None,
        typer.Option(
            metavar="PARSER",
            help="builtin, schp:FILE, onnx:FILE, torchscript:FILE, label-maps:DIR, or an installed parser's name.",
        ),
    ] = None,
    label_set: Annotated[
        str | None, typer.Option(metavar="SET", help="Label set of the parser: a name, or a TOML file.")
    ] = None,
    grouping: Annotated[
        str | None, typer.Option(metavar="NAME", help="Grouping of labels into parts: spreid, ssp, or a TOML file.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Average over the image and its mirror image.")
    ] = None,
    hard: Annotated[
        bool | None, typer.Option("--hard/--soft", help="Reduce each pixel to its most likely label.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N", help="Images per batch, or auto.")] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="BACKEND", help="Workers: none, loky (processes), threading or dask.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Number of workers; -1: one per core.")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address of a Dask scheduler.")] = None,
    allow_failed: Annotated[
        bool | None, typer.Option("--allow-failed", help="Exit with 0 even if some images could not be parsed.")
    ] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build part masks of a data set or any folder of images.

    An interrupted build resumes. Images that cannot be read are listed at the end, and the command exits with 3.
    Options override the section `masks` of the configuration.
    """
    options = {
        "parser": parser,
        "label_set": label_set,
        "grouping": grouping,
        "flip": flip,
        "hard": hard,
        "device": device,
        "batch_size": int(batch_size) if batch_size is not None and batch_size.isdecimal() else batch_size,
        "backend": backend,
        "jobs": jobs,
        "scheduler": scheduler,
        "allow_failed": allow_failed,
    }
    run = load(config, preset, [*(overrides or ()), *overriding(options, "masks")])
    progress = console.progress(quiet=quiet)
    if data is None:
        from rich.markup import escape

        from pipeline.errors import ConfigError
        from pipeline.stages.masks import MASKS_FILE
        from pipeline.stages.run import StoppedRun, run_stages

        if out is not None or split:
            raise ConfigError(
                "--out and --split need images to build masks of", expected="sgsfa masks build KIND:PATH --out FILE"
            )
        warn_of_defaults(run, config, preset)
        stopped = None
        try:
            report = run_stages(run, until="masks", progress=progress)
        except StoppedRun as error:
            report, stopped = error.report, error
        file = report.stages[-1].path / MASKS_FILE
        console.emit({"file": file, **console.plain(report)}, json=json, draw=lambda: escape(str(file)))
        if stopped is not None:
            raise stopped
        return
    from pipeline.datasets.preview import parse_splits
    from pipeline.datasets.records import unique_names
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import DataError, RejectedInputs
    from pipeline.masks.build import build_mask_file

    dataset = open_dataset(data, expect_counts=run.data.expect_counts)
    for note in dataset.notes:
        log.info("%s: %s", data, note)
    records = dataset.split(*parse_splits(split)) if split else dataset.records
    if not records:
        raise DataError(f"no images in the split {', '.join(split or ())}", where=data)
    target = out or DEFAULT_OUT
    made = build_mask_file(
        target,
        root=dataset.root,
        names=unique_names(records),
        config=run.masks,
        label_maps=dataset.label_maps,
        progress=progress,
    )
    console.emit({"file": target, **console.plain(made)}, json=json, draw=lambda: _draw_build(target, made))
    if made.failed and not run.masks.allow_failed:
        raise RejectedInputs("masks", made.failed, total=made.total)


@app.command(epilog=examples("sgsfa masks inspect masks.h5", "sgsfa masks inspect masks.h5 0002_c1s1_000451_03.jpg"))
def inspect(
    file: FileArgument,
    image: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="Name of an image in the file, or the end of it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Describe a mask file, or the masks of one image. Checks the whole file."""
    from pipeline.masks.inspect import describe_file, describe_image

    if image is None:
        description = describe_file(file)
        console.emit(description, json=json, draw=lambda: _draw_file(description))
    else:
        shown = describe_image(file, image)
        console.emit(shown, json=json, draw=lambda: _draw_image(shown))


@app.command(
    epilog=examples(
        "sgsfa masks preview masks.h5 --data folder:photos",
        "sgsfa masks preview masks.h5 --data market1501:/data/Market-1501 --worst --count 50 --out worst.png",
    )
)
def preview(
    *,
    file: FileArgument,
    data: ImagesOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The image file to write.")] = Path(
        "masks.png"
    ),
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=400, help="Number of images.")] = 40,
    images: Annotated[list[str] | None, typer.Option("--image", help="Draw this image. Repeatable.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Draw the images of the lowest quality.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw random images with this seed; by default they are evenly spread."),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Images per row.")] = 5,
    json: JsonOption = False,
) -> None:
    """Draw a contact sheet: each image, its body mask, and its four parts as an overlay."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.registry import open_dataset
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.inspect import resolve_name
    from pipeline.masks.preview import mask_sheet, spread_names
    from pipeline.masks.stats import worst_names

    masks = MaskFile.open(file, allow_incomplete=True)
    names: tuple[str, ...]
    if images:
        names = tuple(resolve_name(masks, image) for image in images)
    elif worst:
        names = worst_names(masks.load(), count)
    else:
        names = spread_names(masks, count, seed=seed)
    write_image(out, mask_sheet(masks, open_dataset(data, expect_counts=False).root, names, columns=columns))
    console.emit({"file": out, "images": names}, json=json, draw=lambda: f"{out}  ({len(names)} images)")


@app.command(
    epilog=examples(
        "sgsfa masks stats masks.h5", "sgsfa masks stats masks.h5 --data folder:photos --sheet worst.png --json"
    )
)
def stats(
    file: FileArgument,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images, for --sheet.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the worst images on a contact sheet.")
    ] = None,
    worst: Annotated[int, typer.Option(min=1, max=400, help="Number of worst images.")] = 50,
    json: JsonOption = False,
) -> None:
    """Show statistics of a mask file: area and presence of parts, implausible masks, the worst images."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.preview import mask_sheet
    from pipeline.masks.stats import mask_stats

    masks = MaskFile.open(file, allow_incomplete=True)
    measured = mask_stats(masks.load(), worst=worst)
    if sheet is not None:
        if data is None:
            raise ConfigError("--sheet draws the images, and needs to know where they are", expected="--data KIND:PATH")
        write_image(sheet, mask_sheet(masks, open_dataset(data, expect_counts=False).root, measured.worst))
    console.emit(measured, json=json, draw=lambda: _draw_stats(measured, sheet))


@app.command(
    epilog=examples(
        "sgsfa masks export masks.h5 --layout npz --out masks.npz",
        "sgsfa masks export masks.h5 --layout bpbreid --out /data/Market-1501-v15.09.15/masks",
    )
)
def export(
    file: FileArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="A new folder; for npz the file.")],
    layout: Annotated[str, typer.Option(metavar="LAYOUT", help="png, npz or bpbreid.")] = "png",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export masks for another program: grey PNGs, one NumPy archive, or BPBreID's folders."""
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.export import export_masks

    report = export_masks(MaskFile.open(file), out, layout, progress=console.progress(quiet=quiet))
    left_out = f", {report.left_out} without masks left out" if report.left_out else ""
    console.emit(
        report, json=json, draw=lambda: f"{report.out}: masks of {report.images} images ({report.layout}){left_out}"
    )


@app.command(
    epilog=examples("sgsfa masks labels", "sgsfa masks labels atr-18", "sgsfa masks labels lip-20 --grouping ssp")
)
def labels(
    label_set: Annotated[str | None, typer.Argument(metavar="SET", help="A label set, or a TOML file.")] = None,
    grouping: Annotated[str, typer.Option(metavar="NAME", help="A grouping, or a TOML file.")] = "spreid",
    json: JsonOption = False,
) -> None:
    """List the label sets of human parsers, or the labels of one set and their parts."""
    from pipeline.parsing.labels import grouping_names, label_set_names, load_grouping, load_label_set

    if label_set is None:
        sets = [load_label_set(name) for name in label_set_names()]
        rows = [(entry.name, entry.count, *_part_counts(entry), ", ".join(grouping_names(entry))) for entry in sets]
        title = "Labels per part; `sgsfa masks labels SET` lists them"
        console.emit(
            {"label_sets": sets},
            json=json,
            draw=lambda: console.table(
                "Set", "Labels>", "Head>", "Upper>", "Lower>", "Shoes>", "Groupings", rows=rows, title=title
            ),
        )
        return
    chosen = load_label_set(label_set)
    grouped = load_grouping(grouping, chosen)
    console.emit({"label_set": chosen, "grouping": grouped}, json=json, draw=lambda: _draw_labels(chosen, grouped))


def _draw_build(out: Path, report: MaskReport) -> str:
    from rich.markup import escape

    text = f"{out}: masks of {_images(report.done)}"
    if report.images_per_second:
        text += f" in {console.duration(report.seconds)}, {report.images_per_second:.1f} images/s"
    if report.resumed:
        text += f", {report.resumed:,} from an earlier run"
    if report.failed:
        text += f"\n{_images(len(report.failed))} could not be parsed"
    return escape(text)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _draw_file(description: FileDescription) -> str:
    from rich.markup import escape

    lines = [str(description.file), *description.lines()]
    lines += [f"failed: {name}: {reason}" for name, reason in [*description.failed.items()][:10]]
    if len(description.failed) > 10:
        lines.append(f"... and {len(description.failed) - 10:,} more")
    lines.append("first images: " + ", ".join(description.first))
    return escape("\n".join(lines))


def _draw_image(description: ImageDescription) -> str:
    from rich.markup import escape

    lines = description.lines()
    if description.state == "ok":
        lines += ["", *("  " + row for row in description.map), "", "H head, U upper, L lower, S shoes"]
    return escape("\n".join(lines))


def _draw_stats(stats: MaskStats, sheet: Path | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (
            part.name,
            "not in the labels" if part.absent else f"{part.present:.1%}",
            f"{part.area:.1%}",
            f"{part.height:.0%}",
        )
        for part in stats.parts
    ]
    counts = f"{stats.done:,} images with masks, {stats.failed:,} failed"
    if stats.pending:
        counts += f", {stats.pending:,} pending"
    lines = [
        f"body: mean area {stats.area_mean:.1%} of the image, between 12 and 75 % in {stats.area_plausible:.1%} of the "
        f"images, empty in {stats.empty:.1%}",
        f"all four parts in {stats.complete:.1%} of the images, of these in order from head to shoes "
        f"{stats.order_plausible:.1%}",
        f"implausible (area, or order of parts): {stats.implausible:.1%}; mean quality {stats.quality_mean:.2f}",
        f"worst: {', '.join(stats.worst[:5])}" + (f"; contact sheet of {len(stats.worst)}: {sheet}" if sheet else ""),
    ]
    table = console.table("Part", "Present>", "Area>", "Height>", rows=rows, title=counts)
    return Group(table, Text("\n".join(lines)))


def _part_counts(label_set: LabelSet) -> list[str]:
    return ["-" if ids is None else str(len(ids)) for ids in label_set.parts]


def _draw_labels(label_set: LabelSet, grouping: Grouping) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from pipeline.parsing.labels import PART_NAMES

    def parts_of(index: int) -> str:
        named = [name for name, ids in zip(PART_NAMES, grouping.parts, strict=True) if ids and index in ids]
        return ", ".join(named) or ("body only" if index in grouping.body else "")

    flipped = label_set.flipped()
    rows = [
        (index, name, parts_of(index), label_set.classes[flipped[index]] if flipped[index] != index else "")
        for index, name in enumerate(label_set.classes)
    ]
    table = console.table("Id>", "Label", "Part", "Mirrored", rows=rows)
    title = f"{label_set.name}, grouped by {grouping.name}"
    if grouping.absent:
        title += f"; parts without labels: {', '.join(grouping.absent)}"
    return Group(Text(title), table)

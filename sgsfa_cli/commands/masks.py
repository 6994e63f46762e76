"""`sgsfa masks`: build, inspect and export part masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import SheetOption, SplitOption, command, command_app, device, refuse, run_until, setting

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs
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

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A mask file.")]


@command(
    app,
    "sgsfa masks build folder:photos --out photos.h5",
    "sgsfa masks build market1501:/data/Market-1501 --split train --parser schp:exp-schp-201908261155-lip.pth",
    "sgsfa masks build -c sgsfa.toml",
    sets=(
        setting(
            "masks.parser",
            metavar="PARSER",
            help="builtin, schp:FILE, onnx:FILE, label-maps:DIR, or an installed parser's name.",
        ),
        setting("masks.label_set", metavar="SET", help="Label set of the parser: a name, or a TOML file."),
        setting("masks.grouping", metavar="NAME", help="Grouping of labels into parts: spreid, ssp, or a TOML file."),
        setting("masks.flip", kind=bool, help="Average over the image and its mirror image."),
        setting("masks.hard", "--hard/--soft", kind=bool, help="Reduce each pixel to its most likely label."),
        device("masks.device"),
        setting(
            "masks.batch_size",
            metavar="N",
            help="Images per batch, or auto.",
            convert=lambda text: int(text) if text.isdecimal() else text,
        ),
        setting("masks.backend", metavar="BACKEND", help="Workers: none, loky (processes), threading or dask."),
        setting("masks.jobs", kind=int, metavar="N", help="Number of workers; -1: one per core."),
        setting("masks.scheduler", metavar="ADDRESS", help="Address of a Dask scheduler."),
        setting(
            "masks.allow_failed",
            "--allow-failed",
            kind=bool,
            help="Exit with 0 even if some images could not be parsed.",
        ),
    ),
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
    split: SplitOption = None,
    settings: RunConfig,
) -> RejectedInputs | None:
    """Build part masks of a data set or any folder of images.

    An interrupted build resumes. Images that cannot be read are listed at the end, and the command exits with 3.
    Options override the section `masks` of the configuration.
    """
    from pipeline.datasets.preview import parse_splits
    from pipeline.datasets.records import unique_names
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import DataError, RejectedInputs
    from pipeline.masks.build import build_mask_file

    if data is None:
        usage = "sgsfa masks build KIND:PATH --out FILE"
        refuse({"--out": out, "--split": split}, "images to build masks of", expected=usage)
        return _build_of_run(settings)
    dataset = open_dataset(data, expect_counts=settings.data.expect_counts)
    for note in dataset.notes:
        log.info("%s: %s", data, note)
    records = dataset.split(*parse_splits(split)) if split else dataset.records
    if not records:
        raise DataError(f"no images in the split {', '.join(split or ())}", where=data)
    target = out or Path("masks.h5")
    made = build_mask_file(
        target,
        root=dataset.root,
        names=unique_names(records),
        config=settings.masks,
        label_maps=dataset.label_maps,
        progress=console.progress(),
    )
    console.emit({"file": target, **console.plain(made)}, lambda: [_build_line(target, made)])
    if made.failed and not settings.masks.allow_failed:
        return RejectedInputs("masks", made.failed, total=made.total)
    return None


def _build_of_run(settings: RunConfig) -> RejectedInputs | None:
    from pipeline.stages.masks import MASKS_FILE

    report, rejected = run_until(settings, "masks", allow_stopped=True)
    file = report.stages[-1].path / MASKS_FILE
    console.emit({"file": file, **console.plain(report)}, lambda: [str(file)])
    return rejected


@command(app, "sgsfa masks inspect masks.h5", "sgsfa masks inspect masks.h5 0002_c1s1_000451_03.jpg")
def inspect(
    file: FileArgument,
    image: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="Name of an image in the file, or the end of it.")
    ] = None,
) -> None:
    """Describe a mask file, or the masks of one image. Checks the whole file."""
    from pipeline.masks.inspect import describe_file, describe_image

    if image is None:
        description = describe_file(file)
        console.emit(description, lambda: _file_lines(description))
    else:
        shown = describe_image(file, image)
        console.emit(shown, lambda: _image_lines(shown))


@command(
    app,
    "sgsfa masks preview masks.h5 --data folder:photos",
    "sgsfa masks preview masks.h5 --data market1501:/data/Market-1501 --worst --count 50 --out worst.png",
)
def preview(
    *,
    file: FileArgument,
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", metavar="KIND:PATH", help="The images: a data set, or the folder they were built from."
        ),
    ],
    out: SheetOption = Path("masks.png"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=400, help="Number of images.")] = 40,
    images: Annotated[list[str] | None, typer.Option("--image", help="Draw this image. Repeatable.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Draw the images of the lowest quality.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw random images with this seed; by default they are evenly spread."),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Images per row.")] = 5,
) -> None:
    """Draw a contact sheet: each image, its body mask, and its four parts as an overlay."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.registry import open_dataset
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.inspect import resolve_name
    from pipeline.masks.preview import mask_sheet, spread_names
    from pipeline.masks.stats import worst_names

    masks = MaskFile.open(file, allow_incomplete=True)
    names = worst_names(masks, count) if worst else spread_names(masks, count, seed=seed)
    if images:
        names = tuple(resolve_name(masks, image) for image in images)
    write_image(out, mask_sheet(masks, open_dataset(data, expect_counts=False).root, names, columns=columns))
    console.emit({"file": out, "images": names}, lambda: [f"{out}  ({len(names)} images)"])


@command(app, "sgsfa masks stats masks.h5", "sgsfa masks stats masks.h5 --data folder:photos --sheet worst.png --json")
def stats(
    file: FileArgument,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="KIND:PATH", help="The images, for --sheet.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the worst images on a contact sheet.")
    ] = None,
    worst: Annotated[int, typer.Option(min=1, max=400, help="Number of worst images.")] = 50,
) -> None:
    """Show statistics of a mask file: area and presence of parts, implausible masks, the worst images."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import ConfigError
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.preview import mask_sheet
    from pipeline.masks.stats import mask_stats

    masks = MaskFile.open(file, allow_incomplete=True)
    measured = mask_stats(masks, worst=worst)
    if sheet is not None:
        if data is None:
            raise ConfigError("--sheet draws the images, and needs to know where they are", expected="--data KIND:PATH")
        write_image(sheet, mask_sheet(masks, open_dataset(data, expect_counts=False).root, measured.worst))
    console.emit(measured, lambda: _draw_stats(measured, sheet))


@command(
    app,
    "sgsfa masks export masks.h5 --layout npz --out masks.npz",
    "sgsfa masks export masks.h5 --layout bpbreid --out /data/Market-1501-v15.09.15/masks",
)
def export(
    file: FileArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="A new folder; for npz the file.")],
    layout: Annotated[str, typer.Option(metavar="LAYOUT", help="png, npz or bpbreid.")] = "png",
) -> None:
    """Export masks for another program: grey PNGs, one NumPy archive, or BPBreID's folders."""
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.export import export_masks

    report = export_masks(MaskFile.open(file), out, layout, progress=console.progress())
    left_out = f", {report.left_out} without masks left out" if report.left_out else ""
    console.emit(report, lambda: [f"{report.out}: masks of {report.images} images ({report.layout}){left_out}"])


@command(app, "sgsfa masks labels", "sgsfa masks labels atr-18", "sgsfa masks labels lip-20 --grouping ssp")
def labels(
    label_set: Annotated[str | None, typer.Argument(metavar="SET", help="A label set, or a TOML file.")] = None,
    grouping: Annotated[str, typer.Option(metavar="NAME", help="A grouping, or a TOML file.")] = "spreid",
) -> None:
    """List the label sets of human parsers, or the labels of one set and their parts."""
    from pipeline.parsing.labels import label_set_names, load_grouping, load_label_set

    if label_set is None:
        sets = [load_label_set(name) for name in label_set_names()]
        console.emit({"label_sets": sets}, lambda: _draw_sets(sets))
    else:
        chosen = load_label_set(label_set)
        grouped = load_grouping(grouping, chosen)
        console.emit({"label_set": chosen, "grouping": grouped}, lambda: _draw_labels(chosen, grouped))


def _build_line(out: Path, report: MaskReport) -> str:
    text = f"{out}: masks of {_images(report.done)}"
    if report.images_per_second:
        text += f" in {console.duration(report.seconds)}, {report.images_per_second:.1f} images/s"
    if report.resumed:
        text += f", {report.resumed:,} from an earlier run"
    if report.failed:
        text += f"\n{_images(len(report.failed))} could not be parsed"
    return text


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _file_lines(description: FileDescription) -> list[str]:
    failed = [f"failed: {name}: {reason}" for name, reason in description.failed.items()]
    if len(failed) > 10:
        failed[10:] = [f"... and {len(failed) - 10:,} more"]
    return [str(description.file), *description.lines(), *failed, f"first images: {', '.join(description.first)}"]


def _image_lines(description: ImageDescription) -> list[str]:
    if description.state != "ok":
        return description.lines()
    rows = ["  " + row for row in description.map]
    return [*description.lines(), "", *rows, "", "H head, U upper, L lower, S shoes"]


def _draw_stats(stats: MaskStats, sheet: Path | None) -> console.Drawn:
    rows = []
    for part in stats.parts:
        present = "not in the labels" if part.absent else f"{part.present:.1%}"
        rows.append((part.name, present, f"{part.area:.1%}", f"{part.height:.0%}"))
    pending = f", {stats.pending:,} pending" if stats.pending else ""
    counts = f"{stats.done:,} images with masks, {stats.failed:,} failed{pending}"
    return [
        console.table("Part", "Present>", "Area>", "Height>", rows=rows, title=counts),
        f"body: mean area {stats.area_mean:.1%} of the image, between 12 and 75 % in {stats.area_plausible:.1%} of the "
        f"images, empty in {stats.empty:.1%}",
        f"all four parts in {stats.complete:.1%} of the images, of these in order from head to shoes "
        f"{stats.order_plausible:.1%}",
        f"implausible (area, or order of parts): {stats.implausible:.1%}; mean quality {stats.quality_mean:.2f}",
        f"worst: {', '.join(stats.worst[:5])}" + (f"; contact sheet of {len(stats.worst)}: {sheet}" if sheet else ""),
    ]


def _draw_sets(sets: Sequence[LabelSet]) -> console.Drawn:
    from pipeline.parsing.labels import grouping_names

    rows: list[tuple[object, ...]] = []
    for each in sets:
        counts = ("-" if ids is None else len(ids) for ids in each.parts)
        rows.append((each.name, each.count, *counts, ", ".join(grouping_names(each))))
    columns = ("Set", "Labels>", "Head>", "Upper>", "Lower>", "Shoes>", "Groupings")
    return [console.table(*columns, rows=rows, title="Labels per part; `sgsfa masks labels SET` lists them")]


def _draw_labels(label_set: LabelSet, grouping: Grouping) -> console.Drawn:
    from pipeline.parsing.labels import PART_NAMES

    def parts_of(index: int) -> str:
        named = [name for name, ids in zip(PART_NAMES, grouping.parts, strict=True) if ids and index in ids]
        return ", ".join(named) or ("body only" if index in grouping.body else "")

    flipped = label_set.flipped()
    rows = [
        (index, name, parts_of(index), label_set.classes[flipped[index]] if flipped[index] != index else "")
        for index, name in enumerate(label_set.classes)
    ]
    absent = f"; parts without labels: {', '.join(grouping.absent)}" if grouping.absent else ""
    return [
        f"{label_set.name}, grouped by {grouping.name}{absent}",
        console.table("Id>", "Label", "Part", "Mirrored", rows=rows),
    ]

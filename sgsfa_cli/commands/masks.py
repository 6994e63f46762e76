"""`sgsfa masks`: build part masks and look at them."""

from __future__ import annotations

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

    from pipeline.datasets.records import Dataset
    from pipeline.masks.build import MaskReport
    from pipeline.masks.inspect import FileDescription, ImageDescription
    from pipeline.masks.stats import MaskStats
    from pipeline.parsing.labels import Grouping, LabelSet

app = command_app(
    "Part masks: build them, look at them, hand them on.",
    "sgsfa masks build folder:photos",
    "sgsfa masks labels lip-20",
)

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
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND:PATH",
            help="A data set or a folder of images. Without it: the masks of the configured run, as its stage.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The mask file to make, by default masks.h5.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Only train, query or gallery images. Repeatable.")
    ] = None,
    parser: Annotated[
        str | None,
        typer.Option(
            metavar="PARSER",
            help="builtin, schp:FILE, onnx:FILE, torchscript:FILE, label-maps:DIR, or an installed parser's name.",
        ),
    ] = None,
    label_set: Annotated[
        str | None, typer.Option(metavar="SET", help="What the parser's labels mean, or a TOML file.")
    ] = None,
    grouping: Annotated[str | None, typer.Option(metavar="NAME", help="spreid, ssp, or a TOML file.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirror image.")] = None,
    hard: Annotated[bool | None, typer.Option("--hard/--soft", help="Each pixel's most likely label only.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N", help="Images a forward, or auto.")] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="BACKEND", help="none, loky, threading or dask: who does the parsing.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Workers of the back end; -1: one a core.")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler.")] = None,
    allow_failed: Annotated[
        bool | None, typer.Option("--allow-failed", help="End with 0 although some images could not be parsed.")
    ] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make part masks, with one command, for a data set or any folder of images.

    A build that is stopped or killed goes on where it was. Images that cannot be read are listed at the end, and the
    command ends with 3. Options win over the configuration's section `masks`.
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
        from pipeline.stages.bodies import MASKS_FILE
        from pipeline.stages.execute import StoppedRun, execute

        if out is not None or split:
            raise ConfigError(
                "--out and --split go with images to build masks of", expected="sgsfa masks build KIND:PATH --out FILE"
            )
        warn_of_defaults(run, config, preset, progress)
        stopped = None
        try:
            report = execute(run, until="masks", progress=progress)
        except StoppedRun as error:
            report, stopped = error.report, error
        file = report.stages[-1].path / MASKS_FILE
        console.emit({"file": file, **console.plain(report)}, json=json, draw=lambda: escape(str(file)))
        if stopped is not None:
            raise stopped
        return
    from pipeline.datasets.preview import parse_splits
    from pipeline.datasets.records import unique_names
    from pipeline.errors import DataError, RejectedInputs
    from pipeline.masks.build import build_masks

    dataset = _open(data, expect_counts=run.data.expect_counts)
    for note in dataset.notes:
        progress.note(f"{data}: {note}")
    records = dataset.split(*parse_splits(split)) if split else dataset.records
    if not records:
        raise DataError(f"there are no images in the split {', '.join(split or ())}", where=data)
    target = out or DEFAULT_OUT
    made = build_masks(
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
        str | None, typer.Argument(metavar="IMAGE", help="An image's name in the file, or its last part.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Tell what is in a mask file, or in one image's masks, in words and numbers. Checks the whole file."""
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
    file: FileArgument,
    data: ImagesOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write.")] = Path("masks.png"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=400, help="Images on the sheet.")] = 40,
    images: Annotated[list[str] | None, typer.Option("--image", help="This image. Repeatable.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Those of the lowest quality.")] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Drawn at random; else spread evenly.")] = None,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Images a row.")] = 5,
    json: JsonOption = False,
) -> None:
    """Draw a contact sheet: each image, its body mask, and its four parts laid over it."""
    from pipeline.datasets.images import write_image
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
    write_image(out, mask_sheet(masks, _open(data).root, names, columns=columns))
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
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the worst images on a sheet.")] = None,
    worst: Annotated[int, typer.Option(min=1, max=400, help="How many of the worst images.")] = 50,
    json: JsonOption = False,
) -> None:
    """Measure a mask file: area and presence of each part, implausible masks, the worst images."""
    from pipeline.datasets.images import write_image
    from pipeline.errors import ConfigError
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.preview import mask_sheet
    from pipeline.masks.stats import mask_stats

    masks = MaskFile.open(file, allow_incomplete=True)
    measured = mask_stats(masks.load(), worst=worst)
    if sheet is not None:
        if data is None:
            raise ConfigError(
                "the sheet shows the images, and nothing says where they are", expected="--data KIND:PATH"
            )
        write_image(sheet, mask_sheet(masks, _open(data).root, measured.worst))
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
    """Write the masks for another program: grey PNGs, one NumPy archive, or BPBreID's folders."""
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.export import export_masks

    report = export_masks(MaskFile.open(file), out, layout, progress=console.progress(quiet=quiet))
    left_out = f", {report.left_out} without masks left out" if report.left_out else ""
    console.emit(
        report, json=json, draw=lambda: f"{report.out}: the masks of {report.images} images ({report.layout}){left_out}"
    )


@app.command(
    epilog=examples("sgsfa masks labels", "sgsfa masks labels atr-18", "sgsfa masks labels lip-20 --grouping ssp")
)
def labels(
    label_set: Annotated[str | None, typer.Argument(metavar="SET", help="A label set, or a TOML file.")] = None,
    grouping: Annotated[str, typer.Option(metavar="NAME", help="A grouping, or a TOML file.")] = "spreid",
    json: JsonOption = False,
) -> None:
    """List the label sets of human parsers, or the labels of one set and the part each belongs to."""
    from pipeline.parsing.labels import grouping_names, label_set_names, load_grouping, load_label_set

    if label_set is None:
        sets = [load_label_set(name) for name in label_set_names()]
        rows = [(entry.name, entry.count, *_part_counts(entry), ", ".join(grouping_names(entry))) for entry in sets]
        title = "Labels in each part; `sgsfa masks labels SET` names them"
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


def _open(data: str, *, expect_counts: bool = False) -> Dataset:
    from pipeline.datasets import synthetic
    from pipeline.datasets.registry import open_dataset
    from pipeline.errors import DataError
    from pipeline.runtime.files import at_home

    path = at_home(data)
    if path.is_dir():
        # A rendered data set holds label maps too, which are no images of people.
        if (path / synthetic.TABLE).is_file() and (path / synthetic.LABEL_MAPS).is_dir():
            raise DataError(
                "this folder holds a data set with label maps",
                where=data,
                expected=f"synthetic:{data}, or folder:{data} for every picture in it",
            )
        return open_dataset(f"folder:{data}", expect_counts=expect_counts)
    if ":" not in data:
        raise DataError(
            "this is a file, not a folder of images" if path.exists() else "there is no such folder",
            where=data,
            expected="a folder of images, or KIND:PATH, as in market1501:/data/Market-1501",
            hint=f"csv:{data}" if path.suffix == ".csv" and path.exists() else None,
        )
    return open_dataset(data, expect_counts=expect_counts)


def _draw_build(out: Path, report: MaskReport) -> str:
    from rich.markup import escape

    speed = resumed = ""
    if report.images_per_second:
        speed = f" in {console.duration(report.seconds)}, {report.images_per_second:.1f} images/s"
        resumed = f", {report.resumed:,} images were done before" if report.resumed else ""
    failed = f"\n{_images(len(report.failed))} could not be parsed" if report.failed else ""
    return f"{escape(str(out))}: masks of {_images(report.done)}{speed}{resumed}{failed}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _draw_file(description: FileDescription) -> str:
    from rich.markup import escape

    lines = [str(description.file), *description.sentences()]
    if description.failed:
        lines.append("Failed: " + ", ".join(description.failed[:10]) + (" ..." if len(description.failed) > 10 else ""))
    if description.first:
        lines.append("First names: " + ", ".join(description.first))
    return escape("\n".join(lines))


def _draw_image(description: ImageDescription) -> str:
    from rich.markup import escape

    lines = description.sentences()
    if description.state == "done":
        lines += ["", *("  " + row for row in description.picture), "", "H head, U upper, L lower, S shoes"]
    return escape("\n".join(lines))


def _draw_stats(stats: MaskStats, sheet: Path | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (part.name, "not given" if part.absent else f"{part.present:.1%}", f"{part.area:.1%}", f"{part.height:.0%}")
        for part in stats.parts
    ]
    counts = f"{stats.done:,} images with masks, {stats.failed:,} failed"
    if stats.pending:
        counts += f", {stats.pending:,} still to do"
    lines = [
        f"whole body: {stats.area_mean:.1%} of the image on average; within 12 to 75 % for {stats.area_plausible:.1%} "
        f"of the images; nobody found in {stats.empty:.1%}",
        f"all four parts in {stats.complete:.1%} of the images; in {stats.order_plausible:.1%} of these in order from "
        "head to shoes",
        f"implausible (area, or parts out of order): {stats.implausible:.1%}; mean quality {stats.quality_mean:.2f}",
        f"worst: {', '.join(stats.worst[:5])}" + (f"; {len(stats.worst)} of them on {sheet}" if sheet else ""),
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
        return ", ".join(named) or ("whole body only" if index in grouping.global_feature else "")

    flipped = label_set.flipped()
    rows = [
        (index, name, parts_of(index), label_set.classes[flipped[index]] if flipped[index] != index else "")
        for index, name in enumerate(label_set.classes)
    ]
    table = console.table("Id>", "Label", "Part", "In a mirror", rows=rows)
    title = f"{label_set.name}, grouped by {grouping.name}"
    if grouping.absent:
        title += f"; it cannot give: {', '.join(grouping.absent)}"
    return Group(Text(title), table)

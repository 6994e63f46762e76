"""`sgsfa data`: check, list and preview data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.commands.data_synth import synth
from sgsfa_cli.options import EXPECT_COUNTS_HELP, SheetOption, SplitOption, Switch, command, command_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.datasets.check import DatasetReport, SplitReport
    from pipeline.datasets.kind import KindInfo

app = command_app(
    "Check, list, preview and render data sets.", "sgsfa data check market1501:/data/Market-1501", "sgsfa data list"
)

_SHOWN = 30

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="KIND:PATH", help="The data set, as in market1501:/data/Market-1501, or a folder of images."
    ),
]


@command(app, "sgsfa data check csv:people.csv", "sgsfa data check partial-reid/partial:/data/Partial-REID --json")
def check(
    spec: SpecArgument,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Also read and decode every image.")] = True,
    expect_counts: Annotated[Switch, typer.Option(help=EXPECT_COUNTS_HELP)] = Switch.ON,
    everything: Annotated[bool, typer.Option("--all", help=f"List all faults, not only the first {_SHOWN}.")] = False,
) -> Exception | None:
    """Count the images of a data set and list all its faults.

    Exits with 0 if there are none, 2 if the data set is not valid as a whole, 3 if only some images are unusable.
    """
    from pipeline.datasets.check import as_whole, check_dataset
    from pipeline.errors import RejectedInputs

    report = check_dataset(spec, decode=decode, expect_counts=expect_counts is Switch.ON, progress=console.progress())
    console.emit(
        {"sound": report.sound, **console.plain(report)}, lambda: _draw_report(report, None if everything else _SHOWN)
    )
    rejected = RejectedInputs("data check", report.rejected, total=report.images) if report.rejected else None
    return as_whole(report) or rejected


@command(app, "sgsfa data list", "sgsfa data list --json", name="list")
def list_kinds() -> None:
    """List the kinds of data set: layout, published counts, cameras, and where to request the images."""
    from pipeline.datasets.registry import kinds

    infos = kinds()
    fields = ("name", "summary", "layout", "variants", "counts", "cameras", "source", "comparable")
    console.emit(
        {"kinds": [{field: getattr(info, field) for field in fields} for info in infos]}, lambda: _draw_kinds(infos)
    )


@command(app, "sgsfa data preview csv:people.csv", "sgsfa data preview market1501:/data/Market-1501 --ids 12")
def preview(
    spec: SpecArgument,
    out: SheetOption = Path("preview.png"),
    ids: Annotated[int, typer.Option(min=1, max=200, help="Number of identities, one per row.")] = 8,
    split: SplitOption = None,
) -> None:
    """Draw a contact sheet of some identities, with their label maps if there are any."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.preview import contact_sheet, parse_splits
    from pipeline.datasets.registry import open_dataset

    dataset = open_dataset(spec, expect_counts=False)
    sheet = contact_sheet(dataset, ids=ids, splits=parse_splits(split or ()))
    write_image(out, sheet)
    height, width = sheet.shape[:2]
    console.emit({"file": out, "height": height, "width": width}, lambda: [f"{out}  ({width}x{height} pixels)"])


command(
    app,
    "sgsfa data synth people --preset tiny",
    "sgsfa data synth people --ids 200 --cameras 6 --shots 3 --jobs -1",
    "sgsfa data synth people --preset transfer",
    "sgsfa data preview synthetic:people",
)(synth)


def _draw_report(report: DatasetReport, shown: int | None) -> console.Drawn:
    columns: tuple[str, ...] = ("Split", "Images>", "Published>", "Identities>", "Published>", "Cameras>", "")
    rows: list[tuple[str, ...]] = [_split_row(split) for split in report.splits]
    if not any(split.expected for split in report.splits):
        columns, rows = columns[0:2] + columns[3:6:2], [row[0:2] + row[3:6:2] for row in rows]
    parts: list[RenderableType] = [f"{report.spec}\nfolder: {report.root}", console.table(*columns, rows=rows)]
    if (sizes := report.sizes) is not None:
        smallest, median, largest = (f"{w}x{h}" for h, w in (sizes.smallest, sizes.median, sizes.largest))
        parts.append(
            f"{report.decoded:,} of {report.images:,} image files decoded; "
            f"smallest {smallest}, median {median}, largest {largest} pixels"
        )
        if sizes.padded:
            parts.append(
                f"{sizes.padded:,} of them are less than 1.6 or more than 3 times as high as wide, such as crops "
                "that end at the waist; networks with model.fit=pad see them padded"
            )
    parts += [f"note: {note}" for note in report.notes]
    if not report.faults:
        return [*parts, "no faults" if report.decoded else "no faults; the images were not decoded"]
    faults = report.faults[:shown]
    rows = [
        (fault.kind.value, fault.where, "; expected: ".join(filter(None, (fault.message, fault.expected))))
        for fault in faults
    ]
    title = f"{len(report.faults):,} fault{'s' if len(report.faults) > 1 else ''}"
    if len(faults) < len(report.faults):
        title += f", the first {len(faults)} (--all lists them all)"
    hints = dict.fromkeys(fault.hint for fault in faults if fault.hint)
    lines = [f"hint: {console.in_terms_of(hint, {'--expect-counts'})}" for hint in hints]
    return [*parts, console.table("Fault", "Where", "What", rows=rows, title=title), *lines]


def _split_row(split: SplitReport) -> tuple[str, ...]:
    expected = split.expected
    right = expected is None or (expected.images, expected.ids) == (split.images, split.ids)
    published = ("", "") if expected is None else (f"{expected.images:,}", f"{expected.ids:,}")
    return (
        split.split,
        f"{split.images:,}",
        published[0],
        f"{split.ids:,}" if split.ids else "-",
        published[1],
        str(split.cameras) if split.cameras else "-",
        "" if right else "differs",
    )


def _draw_kinds(infos: Sequence[KindInfo]) -> console.Drawn:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for info in infos:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        grid.add_row("layout", info.layout)
        for name, meaning in info.variants.items():
            if name:
                grid.add_row("variant", f"{info.name}/{name}  {meaning}")
        for variant, counts in info.counts.items():
            if not variant or counts != info.counts.get(""):
                text = ",  ".join(f"{split} {count.images:,} / {count.ids:,}" for split, count in counts.items())
                grid.add_row("counts", f"{text}  ({variant})" if variant else text)
        grid.add_row("cameras", info.cameras)
        grid.add_row("from", info.source)
        parts += [Text.assemble((f"{info.name}:PATH", "bold"), f"  {info.summary}"), Padding(grid, (0, 0, 1, 2))]
    return [*parts, "Counts are images / identities, without junk. A variant is selected by KIND/VARIANT:PATH."]

"""`sgsfa data`: check, list and preview data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.commands import data_occluded_duke, data_synth
from sgsfa_cli.options import ExpectCountsOption, JsonOption, QuietOption, Switch, command_app, examples

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.datasets.check import DatasetReport, SplitReport
    from pipeline.datasets.kind import Count, KindInfo
    from pipeline.datasets.records import Split

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


@app.command(
    epilog=examples(
        "sgsfa data check csv:people.csv", "sgsfa data check partial-reid/partial:/data/Partial-REID --json"
    )
)
def check(
    spec: SpecArgument,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Also read and decode every image.")] = True,
    expect_counts: ExpectCountsOption = None,
    everything: Annotated[bool, typer.Option("--all", help=f"List all faults, not only the first {_SHOWN}.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count the images of a data set and list all its faults.

    Exits with 0 if there are none, 2 if the data set is not valid as a whole, 3 if only some images are unusable.
    """
    from pipeline.datasets.check import as_whole, check_dataset
    from pipeline.errors import RejectedInputs

    report = check_dataset(
        spec, decode=decode, expect_counts=expect_counts is not Switch.OFF, progress=console.progress(quiet=quiet)
    )
    console.emit(
        {"sound": report.sound, **console.plain(report)},
        json=json,
        draw=lambda: _draw_report(report, None if everything else _SHOWN),
    )
    error = as_whole(report)
    if error is not None:
        raise error
    if report.rejected:
        raise RejectedInputs("data check", report.rejected, total=report.images)


@app.command(name="list", epilog=examples("sgsfa data list", "sgsfa data list --json"))
def list_kinds(json: JsonOption = False) -> None:
    """List the kinds of data set: layout, published counts, cameras, and where to request the images."""
    from pipeline.datasets.registry import kinds

    infos = kinds()
    console.emit({"kinds": [_kind_table(info) for info in infos]}, json=json, draw=lambda: _draw_kinds(infos))


@app.command(
    epilog=examples("sgsfa data preview csv:people.csv", "sgsfa data preview market1501:/data/Market-1501 --ids 12")
)
def preview(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The image file to write.")] = Path(
        "preview.png"
    ),
    ids: Annotated[int, typer.Option("--ids", min=1, max=200, help="Number of identities, one per row.")] = 8,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Use only train, query or gallery images. Repeatable.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw a contact sheet of some identities, with their label maps if there are any."""
    from pipeline.datasets.images import write_image
    from pipeline.datasets.preview import contact_sheet, parse_splits
    from pipeline.datasets.registry import open_dataset

    dataset = open_dataset(spec, expect_counts=False)
    sheet = contact_sheet(dataset, ids=ids, splits=parse_splits(split or ()))
    write_image(out, sheet)
    height, width = sheet.shape[:2]
    console.emit(
        {"file": out, "height": height, "width": width}, json=json, draw=lambda: f"{out}  ({width}x{height} pixels)"
    )


data_synth.register(app)
data_occluded_duke.register(app)


def _draw_report(report: DatasetReport, shown: int | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    published = any(split.expected for split in report.splits)
    columns: tuple[str, ...] = ("Split", "Images>", "Published>", "Identities>", "Published>", "Cameras>", "")
    rows: list[tuple[str, ...]] = [_split_row(split) for split in report.splits]
    if not published:
        columns, rows = columns[0:2] + columns[3:6:2], [row[0:2] + row[3:6:2] for row in rows]
    parts: list[RenderableType] = [Text(f"{report.spec}\nfolder: {report.root}"), console.table(*columns, rows=rows)]
    if report.sizes is not None:
        sizes = report.sizes
        smallest, median, largest = (f"{w}x{h}" for h, w in (sizes.smallest, sizes.median, sizes.largest))
        parts.append(
            Text(
                f"{report.decoded:,} of {report.images:,} image files decoded; "
                f"smallest {smallest}, median {median}, largest {largest} pixels"
            )
        )
    parts += [Text(f"note: {note}") for note in report.notes]
    if report.faults:
        faults = report.faults[:shown]
        rows = [(fault.kind.value, fault.where, _what(fault.message, fault.expected)) for fault in faults]
        title = f"{len(report.faults):,} fault{'s' if len(report.faults) > 1 else ''}"
        if len(faults) < len(report.faults):
            title += f", the first {len(faults)} (--all lists them all)"
        parts.append(console.table("Fault", "Where", "What", rows=rows, title=title))
        hints = dict.fromkeys(fault.hint for fault in faults if fault.hint)
        # The library names the configuration key; this command has an option for it.
        parts += [Text(f"hint: {hint.replace('data.expect_counts=false', '--expect-counts off')}") for hint in hints]
    else:
        parts.append(Text("no faults" if report.decoded else "no faults; the images were not decoded"))
    return Group(*parts)


def _what(found: str, expected: str | None) -> str:
    return f"{found}; expected: {expected}" if expected else found


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


def _kind_table(info: KindInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "summary": info.summary,
        "layout": info.layout,
        "variants": info.variants,
        "counts": info.counts,
        "cameras": info.cameras,
        "source": info.source,
        "comparable": info.comparable,
    }


def _draw_kinds(infos: tuple[KindInfo, ...]) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for info in infos:
        parts.append(Text.assemble((f"{info.name}:PATH", "bold"), f"  {info.summary}"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        rows = [("layout", info.layout)]
        rows += [("variant", f"{info.name}/{name}  {meaning}") for name, meaning in info.variants.items() if name]
        rows += [("counts", _counts(counts, variant)) for variant, counts in _distinct(info).items()]
        rows += [("cameras", info.cameras), ("from", info.source)]
        for label, text in rows:
            grid.add_row(Text(label), Text(text))
        parts.append(Padding(grid, (0, 0, 1, 2)))
    parts.append(Text("Counts are images / identities, without junk. A variant is selected by KIND/VARIANT:PATH."))
    return Group(*parts)


def _distinct(info: KindInfo) -> dict[str, Mapping[Split, Count]]:
    """The counts by variant, without variants that equal the default."""
    default = info.counts.get("", {})
    return {name: counts for name, counts in info.counts.items() if not name or counts != default}


def _counts(counts: Mapping[Split, Count], variant: str) -> str:
    text = ",  ".join(f"{split} {count.images:,} / {count.ids:,}" for split, count in counts.items())
    return f"{text}  ({variant})" if variant else text

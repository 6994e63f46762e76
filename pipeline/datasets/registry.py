"""KIND:PATH -> a data set."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import suggestion
from pipeline.datasets import layouts, msmt17, occluded_duke, table
from pipeline.datasets.faults import FaultKind, ReadLog, as_error
from pipeline.datasets.kind import KindInfo, check_counts, check_identities
from pipeline.datasets.layout import folders_with
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError
from pipeline.runtime.files import at_home

_KINDS = (
    layouts.MARKET1501,
    layouts.DUKEMTMC,
    occluded_duke.INFO,
    layouts.P_DUKE,
    layouts.OCCLUDED_REID,
    layouts.PARTIAL_REID,
    layouts.PARTIAL_ILIDS,
    layouts.CUHK03_NP,
    msmt17.INFO,
    table.CSV,
    layouts.FOLDER,
    table.SYNTHETIC,
)
_EXAMPLE = "KIND:PATH, as in market1501:/data/Market-1501, or a folder of images"
_LOG = logging.getLogger("sgsfa.data")


@dataclass(frozen=True, slots=True)
class Spec:
    """A data set as the user names it: KIND:PATH, KIND/VARIANT:PATH or a folder of images."""

    info: KindInfo
    variant: str
    path: Path


def kinds() -> tuple[KindInfo, ...]:
    """Return all kinds of data set, in the order of the documentation."""
    return _KINDS


def parse_spec(spec: str) -> Spec:
    """Parse KIND[/VARIANT]:PATH, or the path of a folder of images or a CSV file.

    Raises:
        DataError: It has no such form, the kind or variant is unknown, or a folder may be of several kinds.
    """
    label, colon, text = spec.partition(":")
    names = [info.name for info in _KINDS]
    name, _, variant = label.partition("/")
    info = next((info for info in _KINDS if info.name == name), None)
    if not colon or (info is None and at_home(spec).exists()):
        return _guess(spec)
    if not label or not text:
        raise DataError(f"{spec!r} is not a data set", expected=_EXAMPLE)
    if info is None:
        near = suggestion(name.lower().replace("_", "-"), names)
        raise DataError(f"unknown kind of data set {name!r}", where=spec, expected=" | ".join(names), hint=near)
    if variant and variant not in info.variants:
        known = [f"{name}/{other}" for other in info.variants if other]
        raise DataError(
            f"{name} has no variant {variant!r}",
            where=spec,
            expected=" | ".join([name, *known]),
            hint=suggestion(label, known),
        )
    return Spec(info, variant, at_home(text))


def _guess(text: str) -> Spec:
    """The kind of a path without one: a folder that is no known layout is a folder of images."""
    path = at_home(text)
    if path.is_file() and path.suffix.lower() == ".csv":
        return Spec(table.CSV, "", path)
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"the data folder {problem}", where=text, expected=_EXAMPLE)
    fitting = [info.name for info in _KINDS if any(folders_with(path, (entry,)) for entry in info.entries)]
    if fitting:
        raise DataError(
            "the kind of this data set is not stated",
            where=text,
            expected=" | ".join(f"{name}:{text}" for name in fitting),
            hint=f"folder:{text} takes every image in it, without identities",
        )
    return Spec(layouts.FOLDER, "", path)


def read_logged(spec: Spec) -> tuple[Dataset, ReadLog]:
    """Read a data set with all its faults in the log; never raises for a fault of the data."""
    log = ReadLog()
    dataset = spec.info.read(spec.path, spec.variant, log)
    check_counts(spec.info, spec.variant, dataset, log)
    check_identities(dataset, log)
    return replace(dataset, notes=tuple(log.notes)), log


def accepted_kinds(info: KindInfo, expect_counts: bool) -> frozenset[FaultKind]:
    """Return the faults that do not matter if the published counts of a known data set are not expected."""
    return frozenset() if expect_counts or not info.counts else frozenset({FaultKind.COUNTS, FaultKind.MISSING})


def open_dataset(spec: str, *, expect_counts: bool = True) -> Dataset:
    """Open a data set.

    Args:
        spec: KIND:PATH, KIND/VARIANT:PATH (`kinds()` lists them), or a folder of images.
        expect_counts: Reject a known data set that is incomplete. If off, wrong counts, missing folders and missing
            images become notes, which are also logged as warnings, as long as there are images.

    Raises:
        DataError: The specification or the data set is not valid; lists the first few faults and their number.
    """
    parsed = parse_spec(spec)
    dataset, log = read_logged(parsed)
    # Training and testing on the same identities can be intended; a note is attached to every result.
    accepted = {FaultKind.IDENTITIES, *accepted_kinds(parsed.info, expect_counts)}
    fatal = [fault for fault in log.faults if fault.kind not in accepted]
    if fatal or not dataset.records:
        raise as_error(fatal or log.faults, spec)
    losses = tuple(f"{fault.where}: {fault.message}" for fault in log.faults)
    for loss in losses:
        _warn_once(loss)
    return replace(dataset, notes=dataset.notes + losses)


@functools.cache
def _warn_once(text: str) -> None:
    # A run opens its data sets several times.
    _LOG.warning("%s", text)

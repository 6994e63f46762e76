"""KIND:PATH -> a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import suggestion
from pipeline.datasets import (
    cuhk03_np,
    dukemtmc,
    folder,
    market1501,
    msmt17,
    occluded_duke,
    occluded_reid,
    p_duke,
    partial_ilids,
    partial_reid,
    synthetic,
    table,
)
from pipeline.datasets.faults import FaultKind, ReadLog, as_error
from pipeline.datasets.kind import KindInfo, check_counts, check_identities
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError
from pipeline.runtime.files import at_home

_KINDS = (
    market1501.INFO,
    dukemtmc.INFO,
    occluded_duke.INFO,
    p_duke.INFO,
    occluded_reid.INFO,
    partial_reid.INFO,
    partial_ilids.INFO,
    cuhk03_np.INFO,
    msmt17.INFO,
    table.INFO,
    folder.INFO,
    synthetic.INFO,
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A data set as a user names it: KIND:PATH or KIND/VARIANT:PATH."""

    info: KindInfo
    variant: str
    path: Path


def kinds() -> tuple[KindInfo, ...]:
    """All kinds of data set, in the order of the documentation."""
    return _KINDS


def parse_spec(spec: str) -> Spec:
    """Take KIND[/VARIANT]:PATH apart.

    Raises:
        DataError: It has no such form, or the kind or variant is not known.
    """
    label, colon, text = spec.partition(":")
    names = [info.name for info in _KINDS]
    if not colon or not label or not text:
        raise DataError(
            f"{spec!r} does not name a data set", expected="KIND:PATH, as in market1501:/data/Market-1501", hint=_LIST
        )
    name, _, variant = label.partition("/")
    info = next((info for info in _KINDS if info.name == name), None)
    if info is None:
        near = suggestion(name.lower().replace("_", "-"), names)
        raise DataError(
            f"unknown kind of data set {name!r}", where=spec, expected=" | ".join(names), hint=near or _LIST
        )
    if variant and variant not in info.variants:
        known = [f"{name}/{other}" for other in info.variants if other]
        raise DataError(
            f"{name} has no variant {variant!r}",
            where=spec,
            expected=" | ".join([name, *known]),
            hint=suggestion(label, known),
        )
    return Spec(info, variant, at_home(text))


def read_logged(spec: Spec) -> tuple[Dataset, ReadLog]:
    """Read a data set with everything that is wrong about it in the log; never raises for a fault of the data."""
    log = ReadLog()
    dataset = spec.info.read(spec.path, spec.variant, log)
    check_counts(spec.info, spec.variant, dataset, log)
    check_identities(dataset, log)
    return replace(dataset, notes=tuple(log.notes)), log


def overruled_kinds(info: KindInfo, expect_counts: bool) -> frozenset[FaultKind]:
    """The faults that a known data set may have where its published counts are not expected."""
    return frozenset() if expect_counts or not info.counts else frozenset({FaultKind.COUNTS, FaultKind.MISSING})


def open_dataset(spec: str, *, expect_counts: bool = True) -> Dataset:
    """Open a data set.

    Args:
        spec: KIND:PATH or KIND/VARIANT:PATH; `kinds()` lists them.
        expect_counts: Refuse a known data set that is not whole. Without it, wrong counts and missing folders are
            turned into notes as long as there are images.

    Raises:
        DataError: The specification or the data set is wrong; lists the first few faults and their number.
    """
    parsed = parse_spec(spec)
    dataset, log = read_logged(parsed)
    # Whoever trains and tests on the same people may have a reason; a note goes with every result.
    tolerated = {FaultKind.IDENTITIES, *overruled_kinds(parsed.info, expect_counts)}
    fatal = [fault for fault in log.faults if fault.kind not in tolerated]
    if fatal or not dataset.records:
        raise as_error(fatal or log.faults, spec)
    overruled = tuple(f"{fault.where}: {fault.message}" for fault in log.faults)
    return replace(dataset, notes=dataset.notes + overruled)


_LIST = "`sgsfa data list` shows all kinds"

"""Describe a mask file, or the masks of one image."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import suggestion
from pipeline.errors import FormatError
from pipeline.formats.masks import FAILED, OK, PART_NAMES, PENDING, MaskFile
from pipeline.formats.provenance import JsonScalar
from pipeline.masks.occupancy import body_area, centroid_rows, part_area, plausible_order

_STATES = {PENDING: "pending", OK: "ok", FAILED: "failed"}
_LETTERS = "HULS"


@dataclass(frozen=True, slots=True)
class FileDescription:
    """A mask file: its images, those with masks, why others failed; quality as 10th percentile, median and 90th."""

    file: Path
    complete: bool
    images: int
    done: int
    failed: dict[str, str]
    pending: int
    provenance: Mapping[str, JsonScalar]
    quality: tuple[float, float, float]
    first: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the description as text."""
        values = self.provenance
        state = "complete" if self.complete else f"incomplete, {self.pending:,} pending"
        weights = f", weights {str(values['weights_sha256'])[:12]}" if "weights_sha256" in values else ""
        computed = f"; {values['backend']}, {values['precision']}" if "backend" in values else ""
        flip = "; averaged with mirror images" if values.get("flip") else ""
        low, median, high = self.quality
        lines = [
            f"{self.images:,} images: {self.done:,} with masks, {len(self.failed):,} failed; {state}",
            f"parser: {values.get('parser')} (version {values.get('parser_version')}{weights}{computed}), "
            f"{values.get('batch_size')} images per batch",
            f"labels: {values.get('label_set')}, grouping {values.get('grouping')}, "
            f"{'hard' if values.get('hard') else 'soft'}{flip}; resized by {values.get('resize')}",
            f"quality: 10th percentile {low:.2f}, median {median:.2f}, 90th percentile {high:.2f}",
        ]
        if "absent_parts" in values:
            lines.append(f"parts that the labels do not have (their masks are zeros): {values['absent_parts']}")
        return lines


@dataclass(frozen=True, slots=True)
class PartDescription:
    """One part of one image: the share of the image it covers, and its centroid's height (NaN if absent)."""

    name: str
    area: float
    height: float

    @property
    def present(self) -> bool:
        """Whether it covers at least one cell."""
        return not np.isnan(self.height)


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """One image's masks: its state (ok, failed or pending) and why it failed, quality in [0, 1], and the four parts.

    Attributes:
        area: Share of the image that the body covers.
        ordered: Whether the present parts are in order from head to shoes.
        map: 16 lines of 8 letters: the leading part of each cell, `.` where the body covers less than half.
    """

    name: str
    state: str
    reason: str
    quality: float
    area: float
    parts: tuple[PartDescription, ...]
    ordered: bool
    map: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the description as text."""
        if self.state != "ok":
            return [f"{self.name}: {self.state}, no masks" + (f" ({self.reason})" if self.reason else "")]
        lines = [f"{self.name}: quality {self.quality:.2f}; the body covers {self.area:.0%} of the image"]
        for part in self.parts:
            if part.present:
                lines.append(f"{part.name}: {part.area:.1%} of the image, centre at {part.height:.0%} of the height")
            else:
                lines.append(f"{part.name}: absent")
        lines.append("parts in order from head to shoes" if self.ordered else "parts out of order")
        return lines


def describe_file(path: Path) -> FileDescription:
    """Describe a mask file, complete or not; raises `FormatError` if it is not a valid mask file."""
    masks = MaskFile.open(path, allow_incomplete=True)
    good = masks.quality[masks.status == OK]
    low, middle, high = np.quantile(good, (0.1, 0.5, 0.9)).tolist() if len(good) else (0.0, 0.0, 0.0)
    return FileDescription(
        file=path,
        complete=masks.complete,
        images=len(masks),
        done=len(good),
        failed={masks.names[row]: reason for row, reason in masks.reasons.items()},
        pending=int((masks.status == PENDING).sum()),
        provenance=dict(masks.provenance.values),
        quality=(low, middle, high),
        first=masks.names[:3],
    )


def describe_image(path: Path, name: str) -> ImageDescription:
    """Describe the masks of one image, named in full or by an end that no other image shares.

    Raises:
        FormatError: The file is not valid, or the name is unknown or ambiguous.
    """
    masks = MaskFile.open(path, allow_incomplete=True)
    full = resolve_name(masks, name)
    row = masks.index(full)
    parts, body = masks.parts[row : row + 1], masks.body[row : row + 1]
    areas, heights = part_area(parts)[0], centroid_rows(parts)[0]
    return ImageDescription(
        name=full,
        state=_STATES[int(masks.status[row])],
        reason=masks.reasons.get(row, ""),
        quality=float(masks.quality[row]),
        area=float(body_area(body)[0]),
        parts=tuple(
            PartDescription(part, float(area), float(height))
            for part, area, height in zip(PART_NAMES, areas, heights, strict=True)
        ),
        ordered=bool(plausible_order(parts)[0] == 1),
        map=_letter_map(parts[0], body[0]),
    )


def resolve_name(masks: MaskFile, name: str) -> str:
    """Return the full name of an image of which `name` may be the end.

    Raises:
        FormatError: No image has this name, or several do.
    """
    if name in masks:
        return name
    # The Unicode normal form is the file system's choice, not the user's.
    wanted = unicodedata.normalize("NFC", name)
    ends = ((full, "/" + unicodedata.normalize("NFC", full)) for full in masks.names)
    found = [full for full, end in ends if end.endswith("/" + wanted)]
    if len(found) > 1:
        raise FormatError(f"{len(found)} images match {name!r}", where=masks.path, expected=" | ".join(found[:5]))
    if not found:
        raise FormatError(
            f"no image {name!r} in the mask file",
            where=masks.path,
            expected=f"a name such as {masks.names[0]!r}" if masks.names else None,
            hint=suggestion(name, masks.names),
        )
    return found[0]


def _letter_map(parts: np.ndarray, body: np.ndarray) -> tuple[str, ...]:
    rows, columns = parts.shape[1:]
    body = body.reshape(rows, body.shape[0] // rows, columns, body.shape[1] // columns).mean(axis=(1, 3))
    leading = parts.argmax(axis=0)
    covered = (np.maximum(body, parts.sum(axis=0, dtype=np.int64)) >= 127.5) & (parts.max(axis=0) > 0)
    return tuple(
        "".join(_LETTERS[leading[row, column]] if covered[row, column] else "." for column in range(columns))
        for row in range(rows)
    )

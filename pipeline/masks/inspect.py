"""What is in a mask file, or in one image's masks, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import suggestion
from pipeline.errors import FormatError
from pipeline.formats.masks import DONE, FAILED, PART_NAMES, PENDING, MaskFile, MaskMeta
from pipeline.masks.occupancy import body_area, centroid_rows, part_area, plausible_order

_STATES = {PENDING: "pending", DONE: "done", FAILED: "failed"}
_LETTERS = "HULS"


@dataclass(frozen=True, slots=True)
class FileDescription:
    """A mask file.

    Attributes:
        file: Where it is.
        complete: Whether its build has finished.
        created: When the build began, UTC.
        images: Rows.
        done: Rows with masks.
        failed: Names of images that could not be parsed.
        pending: Rows still to do.
        meta: Where the masks come from.
        quality: 10th percentile, median and 90th percentile of the quality.
        first: The first names.
    """

    file: Path
    complete: bool
    created: str
    images: int
    done: int
    failed: tuple[str, ...]
    pending: int
    meta: MaskMeta
    quality: tuple[float, float, float]
    first: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The description in words."""
        meta = self.meta
        state = "complete" if self.complete else f"not finished: {self.pending:,} still to do"
        weights = f", weights {meta.weights_sha256[:12]}" if meta.weights_sha256 else ""
        lines = [
            f"{self.images:,} images, {self.done:,} with masks, {len(self.failed):,} failed; {state}.",
            f"Made by {meta.parser} (version {meta.parser_version}{weights}; {meta.backend}, {meta.precision}) "
            f"from {self.created}, {meta.batch_size} images a batch.",
            f"Labels {meta.label_set}, grouped by {meta.grouping}; "
            + ("mirror images averaged; " if meta.flip else "")
            + ("hard labels" if meta.hard else "soft labels")
            + f", resized by {meta.resize}.",
            "Quality: a tenth of the images below {:.2f}, half below {:.2f}, a tenth above {:.2f}.".format(
                *self.quality
            ),
        ]
        if meta.groups_absent:
            lines.append(f"The parser cannot give: {', '.join(meta.groups_absent)}; these masks are zeros.")
        return lines


@dataclass(frozen=True, slots=True)
class PartDescription:
    """One part of one image: share of the image it covers, and its centroid's height (NaN where it is not there)."""

    name: str
    area: float
    height: float

    @property
    def present(self) -> bool:
        """Whether it covers at least one cell."""
        return not np.isnan(self.height)


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """One image's masks.

    Attributes:
        name: The image.
        state: done, failed or pending.
        quality: In [0, 1].
        area: Share of the image that the whole body covers.
        parts: The four parts.
        ordered: Whether the present parts lie in order from head to shoes.
        picture: 16 lines of 8 letters: the leading part of each cell, `.` where the person covers less than half.
    """

    name: str
    state: str
    quality: float
    area: float
    parts: tuple[PartDescription, ...]
    ordered: bool
    picture: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The description in words."""
        if self.state != "done":
            return [f"{self.name}: {self.state}, it has no masks."]
        lines = [f"{self.name}: quality {self.quality:.2f}; the person covers {self.area:.0%} of the image."]
        for part in self.parts:
            if part.present:
                lines.append(f"{part.name}: {part.area:.1%} of the image, centred {part.height:.0%} from the top.")
            else:
                lines.append(f"{part.name}: not there.")
        lines.append("The parts lie in order." if self.ordered else "The parts are out of order.")
        return lines


def describe_file(path: Path) -> FileDescription:
    """Describe a mask file, finished or not.

    Raises:
        FormatError: It is not a sound mask file.
    """
    file = MaskFile.open(path, allow_incomplete=True)
    masks = file.load()
    good = masks.quality[masks.done == DONE]
    low, middle, high = np.quantile(good, (0.1, 0.5, 0.9)).tolist() if len(good) else (0.0, 0.0, 0.0)
    failed = tuple(masks.names[row] for row in np.flatnonzero(masks.done == FAILED).tolist())
    return FileDescription(
        file=path,
        complete=file.complete,
        created=file.created,
        images=len(masks),
        done=len(good),
        failed=failed,
        pending=int((masks.done == PENDING).sum()),
        meta=file.meta,
        quality=(low, middle, high),
        first=masks.names[:3],
    )


def describe_image(path: Path, name: str) -> ImageDescription:
    """Describe the masks of one image.

    Args:
        path: The mask file.
        name: The image's name in it, or the end of one that no other image shares.

    Raises:
        FormatError: The file is not sound, or the name is unknown or not clear.
    """
    file = MaskFile.open(path, allow_incomplete=True)
    full = resolve_name(file, name)
    row = file.index(full)
    masks = file.load()
    parts, body = masks.parts[row : row + 1], masks.body[row : row + 1]
    areas, heights = part_area(parts)[0], centroid_rows(parts)[0]
    return ImageDescription(
        name=full,
        state=_STATES[int(masks.done[row])],
        quality=float(masks.quality[row]),
        area=float(body_area(body)[0]),
        parts=tuple(
            PartDescription(part, float(area), float(height))
            for part, area, height in zip(PART_NAMES, areas, heights, strict=True)
        ),
        ordered=bool(plausible_order(parts)[0] == 1),
        picture=_picture(parts[0], body[0]),
    )


def resolve_name(file: MaskFile, name: str) -> str:
    """The full name of an image of which `name` may be the end.

    Raises:
        FormatError: No image, or several, are called so.
    """
    if name in file:
        return name
    found = [full for full in file.names if full.endswith("/" + name)]
    if len(found) > 1:
        raise FormatError(f"{len(found)} images are called {name!r}", where=file.path, expected=" | ".join(found[:5]))
    if not found:
        raise FormatError(
            f"there is no image {name!r} in the mask file",
            where=file.path,
            expected=f"a name such as {file.names[0]!r}" if file.names else None,
            hint=suggestion(name, file.names),
        )
    return found[0]


def _picture(parts: np.ndarray, body: np.ndarray) -> tuple[str, ...]:
    rows, columns = parts.shape[1:]
    body = body.reshape(rows, body.shape[0] // rows, columns, body.shape[1] // columns).mean(axis=(1, 3))
    leading = parts.argmax(axis=0)
    covered = (np.maximum(body, parts.sum(axis=0, dtype=np.int64)) >= 127.5) & (parts.max(axis=0) > 0)
    return tuple(
        "".join(_LETTERS[leading[row, column]] if covered[row, column] else "." for column in range(columns))
        for row in range(rows)
    )

"""The masks of training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.datasets.images import WHOLE_AREA
from pipeline.errors import DataError
from pipeline.formats.masks import BODY_SIZE, OK, PART_NAMES, PARTS_SIZE, MaskFile
from pipeline.model.mask_targets import MaskTargets, resized
from pipeline.training.augment import overlap

_CHUNK = 256


def load_masks(
    path: Path | None, names: Sequence[str], model: ModelConfig, areas: npt.NDArray[np.float64] | None = None
) -> MaskTargets:
    """Read the masks of images by name, averaged to the maps of a network.

    Args:
        path: The mask file; None: no image has a mask.
        names: Of N images.
        model: The network.
        areas: (N, 4) the `Area` of each image in its frame; None: every image fills its frame.

    Raises:
        FormatError: The mask file is damaged or of another kind.
        DataError: The file holds masks of fewer than half of these images, of no part at all, or empty ones only.
    """
    parts = np.zeros((len(names), 4, *PARTS_SIZE), np.uint8)
    body = np.zeros((len(names), 1, *BODY_SIZE), np.uint8)
    has_mask = np.zeros(len(names), np.bool_)
    supervised = np.ones(len(PART_NAMES), np.bool_)
    if path is not None:
        stored = MaskFile.open(path)
        supervised = np.array([name not in stored.absent_parts for name in PART_NAMES])
        if not supervised.any():
            raise DataError(
                "the masks supervise no part: the parser's label set lacks head, upper and lower body and shoes",
                where=path,
                hint="use another parser, or train `baseline`, which needs no masks",
            )
        rows = _rows(path, names, stored.rows)
        has_mask = (rows >= 0) & (stored.status[np.maximum(rows, 0)] == OK)
        taken = rows[has_mask]
        if has_mask.any() and not (stored.parts[taken].any() or stored.body[taken].any()):
            raise DataError(
                f"the masks of all {int(has_mask.sum()):,} training images are empty",
                where=path,
                hint="label maps of 0 and 255, or a wrong masks.label_set, give such masks",
            )
        parts[has_mask] = stored.parts[taken]
        body[has_mask, 0] = stored.body[taken]
    stride = 8 if model.fine_masks else 16
    return MaskTargets(
        resized(placed(torch.from_numpy(parts), areas), (model.height // stride, model.width // stride)),
        resized(placed(torch.from_numpy(body), areas), (model.height // 4, model.width // 4)),
        torch.from_numpy(has_mask),
        torch.from_numpy(supervised),
    )


def placed(masks: Tensor, areas: npt.NDArray[np.float64] | None) -> Tensor:
    """Move masks of images to where the images are in their frames; the rest of a frame is zero.

    Args:
        masks: (N, C, h, w) uint8, share of each cell of the image.
        areas: (N, 4) `Area` of each image; None: every image fills its frame.

    Returns:
        (N, C, h, w) uint8, share of each cell of the frame.
    """
    padded = np.flatnonzero((areas != WHOLE_AREA).any(1)) if areas is not None else ()
    if areas is None or not len(padded):
        return masks
    found, (height, width) = masks.clone(), masks.shape[2:]
    for start in range(0, len(padded), _CHUNK):
        rows = torch.from_numpy(padded[start : start + _CHUNK])
        top, left, bottom, right = torch.from_numpy(areas)[rows].float().unbind(1)
        zero = torch.zeros_like(top)
        down = overlap(height, height, (zero, zero + height), (top * height, bottom * height))
        across = overlap(width, width, (zero, zero + width), (left * width, right * width))
        moved = down.unsqueeze(1) @ masks[rows].float() @ across.unsqueeze(1).mT
        found[rows] = moved.round().to(torch.uint8)
    return found


def _rows(path: Path, names: Sequence[str], row_of: Mapping[str, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Row of each image in the mask file, -1 where it has none."""
    rows = np.array([row_of.get(name, -1) for name in names], dtype=np.int64)
    # Data sets share some names by chance, and rendered ones do by construction.
    found = int((rows >= 0).sum())
    if 2 * found < len(names):
        raise DataError(
            f"the mask file holds {f'only {found}' if found else 'none'} of the {len(names)} training images",
            where=path,
            expected=f"masks of images such as {names[0]}",
            hint="it was built for another data set",
        )
    return rows

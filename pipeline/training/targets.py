"""The masks of training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.config import ModelConfig
from pipeline.errors import DataError
from pipeline.formats.masks import BODY_SIZE, OK, PART_NAMES, PARTS_SIZE, MaskFile
from pipeline.model.mask_targets import MaskTargets, resized


def load_masks(path: Path | None, names: Sequence[str], model: ModelConfig) -> MaskTargets:
    """Read the masks of images by name, averaged to the maps of a network; without a file no image has one.

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
        resized(torch.from_numpy(parts), (model.height // stride, model.width // stride)),
        resized(torch.from_numpy(body), (model.height // 4, model.width // 4)),
        torch.from_numpy(has_mask),
        torch.from_numpy(supervised),
    )


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

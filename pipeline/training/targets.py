"""What training images teach: part masks and identity classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import DataError
from pipeline.formats.masks import OK, PART_NAMES, MaskFile
from pipeline.model.mask_targets import MaskTargets


def identity_classes(pids: Sequence[int]) -> Tensor:
    """Return the class of each image: (N,) int64, numbered from 0 in the order of the person ids."""
    classes = {pid: label for label, pid in enumerate(sorted(set(pids)))}
    return torch.tensor([classes[pid] for pid in pids])


def load_masks(path: Path | None, names: Sequence[str], *, height: int, width: int, stride: int = 16) -> MaskTargets:
    """Read the masks of images by name.

    Args:
        path: A mask file; None: no image has a mask.
        names: Names of the images.
        height: Height of the network's input in pixels; masks are averaged to its maps.
        width: Width likewise.
        stride: Pixels per cell of part masks.

    Raises:
        FormatError: The mask file is damaged or of another kind.
        DataError: The file holds masks of fewer than half of these images, of no part at all, or empty ones only.
    """
    count = len(names)
    parts = np.zeros((count, 4, 16, 8), np.uint8)
    body = np.zeros((count, 1, 64, 32), np.uint8)
    has_mask = np.zeros(count, np.bool_)
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
    return MaskTargets(
        _resize(torch.from_numpy(parts), height // stride, width // stride),
        _resize(torch.from_numpy(body), height // 4, width // 4),
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


def _resize(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Masks are stored for inputs of 256 x 128 pixels; other inputs have other maps."""
    if masks.shape[2:] == (rows, columns):
        return masks
    resized = F.interpolate(masks.float(), size=(rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)

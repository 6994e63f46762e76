"""The spatial branch's geometry: head row, strips, visibility, and which features train (paper, Sec. 3.2).

Pure functions on masks; all work on whole batches without a loop over images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import ModelConfig

COMBINATIONS = ("top", "middle", "bottom", "top+middle", "middle+bottom")
"""FR of eq. 1, in the order of every tensor with five spatial features."""

NO_HEAD = -1

_LEAST_BODY = 1e-6


def active_pixels(masks: Tensor, threshold: float) -> Tensor:
    """Return the active pixels of masks (B, H, W): above the threshold and above half of the mask's maximum.

    The paper says "non-zero", which a sigmoid always is. The threshold decides whether there is a head, the maximum
    where it is: confident masks blur into the row above, and no fixed value excludes that row without losing heads
    that are small or uncertain.
    """
    return (masks > threshold) & (masks > 0.5 * masks.amax((1, 2), keepdim=True))


def head_row_first(head: Tensor, threshold: float) -> Tensor:
    """Return the first row of each head mask (B, H, W) with an active pixel (`active_pixels`): (B,), or `NO_HEAD`."""
    active = active_pixels(head, threshold).any(2)
    return torch.where(active.any(1), active.to(torch.int64).argmax(1), NO_HEAD)


def head_row_maximum(head: Tensor, threshold: float) -> Tensor:
    """Return the row of each head mask's maximum plus one, within the image (Sec. 3.3, l_head + 1).

    It is `NO_HEAD` where the maximum does not exceed the threshold.
    """
    peaks, rows = head.amax(2).max(1)
    rows = (rows + 1).clamp_max(head.shape[1] - 1)
    return torch.where(peaks > threshold, rows, NO_HEAD)


def head_height(head: Tensor, threshold: float) -> Tensor:
    """Count the rows from the first to the last active row of each head mask (B, H, W); 0 without a head."""
    active = active_pixels(head, threshold).any(2)
    above, below = active.to(torch.int64).argmax(1), active.flip(1).to(torch.int64).argmax(1)
    return torch.where(active.any(1), active.shape[1] - above - below, 0)


def strip_bounds(start: Tensor, rows: int, fractions: tuple[float, float, float], body: Tensor | None = None) -> Tensor:
    """Return the bounds of top, middle and bottom.

    The rows from `start` down (or the body's height, where given) are divided by `fractions`; each strip has at
    least one row as long as three rows are left, and no strip leaves the image.

    Args:
        start: (B,) head row, or `NO_HEAD`.
        rows: Rows H of the feature map.
        fractions: Shares of top, middle and bottom; they add up to 1.
        body: (B,) height of the body in rows; None: all rows under `start`.

    Returns:
        (B, 3, 2) int64: begin (inclusive) and end (exclusive) of each strip. Without a head all are empty (0, 0).
    """
    found = start != NO_HEAD
    begin = start.clamp_min(0)
    left = rows - begin
    height = left if body is None else torch.minimum(body.clamp_min(3), left)
    top = torch.round(height * fractions[0]).to(torch.int64).clamp_min(1)
    middle = torch.round(height * fractions[1]).to(torch.int64).clamp_min(1)
    # The first strips leave a row for those below them, where there are rows enough.
    top = torch.minimum(top, (height - 2).clamp_min(1))
    middle = torch.minimum(middle, (height - top - 1).clamp_min(1))
    limit = begin + height
    first = torch.minimum(begin + top, limit)
    second = torch.minimum(first + middle, limit)
    bounds = torch.stack([torch.stack([begin, first, second], 1), torch.stack([first, second, limit], 1)], 2)
    return torch.where(found[:, None, None], bounds, 0)


def strip_masks(bounds: Tensor, rows: int) -> Tensor:
    """Return row masks of the strips: (B, 3, 2) bounds -> (B, 3, rows) float, 1 inside."""
    row = torch.arange(rows, device=bounds.device)
    inside = (row >= bounds[..., :1]) & (row < bounds[..., 1:])
    return inside.to(torch.float32)


def find_strips(masks: Tensor, config: ModelConfig, *, testing: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find the strips of images from predicted or true part masks, and which of them show the body (eq. 2).

    Args:
        masks: (B, 4, H, W) part masks in [0, 1], the head first.
        config: Rules of head row, strips and body height.
        testing: Begin at the head row of tests (`head_row_test`), which may be another than that of training.

    Returns:
        Row masks (B, 3, H), t, m, b (B, 3) bool, and the visibility of each strip (B, 3).
    """
    head, threshold = masks[:, 0], config.head_threshold
    rows = masks.shape[2]
    by_maximum = config.head_row_test == "max+1" and testing
    start = (head_row_maximum if by_maximum else head_row_first)(head, threshold)
    body: Tensor | None = None
    if config.body_height == "head":
        body = torch.round(head_height(head, threshold) / config.strips[0]).to(torch.int64)
    strips = strip_masks(strip_bounds(start, rows, config.strips, body), rows)
    mean, peak = strip_visibility(masks, strips)
    return strips, peak > threshold, mean


def strip_visibility(parts: Tensor, strips: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how much of the body strips (B, 3, H) show, by part masks (B, 4, H, W) in [0, 1].

    Returns:
        Mean of the union (maximum) of the part masks inside each strip (B, 3), 0 for an empty strip; and the
        largest value of that union inside each strip (B, 3), which eq. 2 thresholds.
    """
    union = parts.amax(1)
    mean = torch.einsum("bh,bsh->bs", union.mean(2), strips.to(union.dtype)) / strips.sum(2).clamp_min(1.0)
    return mean, (union.amax(2).unsqueeze(1) * strips).amax(2)


def strips_to(strips: Tensor, rows: int) -> Tensor:
    """Return row masks (B, 3, H) of strips as shares of the rows of a coarser map, whose `rows` divide H."""
    return strips.reshape(*strips.shape[:2], rows, -1).mean(3)


def choose_features(visible: Tensor) -> Tensor:
    """Choose the spatial features that train (eq. 3) by t, m, b (B, 3): (B, 5) bool, as in `COMBINATIONS`."""
    t, m, b = visible.unbind(1)
    two, three = t & m, t & m & b
    return torch.stack([t, two, three, two, three], 1)


def pool_strips(features: Tensor, strips: Tensor, body: Tensor | None = None) -> Tensor:
    """Average features over each strip and over its two training-time combinations (eq. 1).

    Args:
        features: (B, C, H, W).
        strips: (B, 3, H) row masks.
        body: (B, H, W) weights of the cells in [0, 1]; None: all alike, so that the background and occluders count
            as much as the person.

    Returns:
        (B, 5, C) in the order of `COMBINATIONS`; a feature whose strips are empty is zero.
    """
    combined = torch.cat([strips, strips[:, 0:1] + strips[:, 1:2], strips[:, 1:2] + strips[:, 2:3]], 1)
    if body is not None:
        cells = combined.unsqueeze(3) * body.unsqueeze(1)
        cells = cells / cells.sum((2, 3), keepdim=True).clamp_min(_LEAST_BODY)
        return torch.einsum("bchw,bshw->bsc", features, cells.to(features.dtype))
    rows = features.mean(3)
    weights = combined / combined.sum(2, keepdim=True).clamp_min(_LEAST_BODY)
    return torch.einsum("bch,bsh->bsc", rows, weights.to(rows.dtype))

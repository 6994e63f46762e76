"""The loss: cross-entropy of soft labels, and the measure that masks are judged by, made differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.parser.clothing import BAG, IN_FRONT

PARTS: tuple[tuple[int, ...], ...] = ((1, 2, 4, 13), (3, 5, 6, 7, 10, 11, 14, 15), (9, 12, 16, 17), (8, 18, 19))
"""LIP labels of head, upper body, lower body and shoes: SPReID's grouping."""

WHOLE = 4.0
"""What the whole body counts beside a part."""

_STEEPNESS = 10.0
_BACKGROUNDS = [0, BAG, IN_FRONT]


def soft_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, known: Tensor | None = None) -> Tensor:
    """Return cross-entropy against label shares.

    Args:
        logits: (B, 22, H, W).
        target: (B, 22, H, W) share of each label in a cell.
        weights: Of the same shape or one like it.
        known: (B,) bool, whether the target distinguishes the kinds of background; otherwise its label 0 stands
            for any of them. None: in all.
    """
    logs = logits.log_softmax(1)
    if known is not None:
        any_background = logs[:, _BACKGROUNDS].logsumexp(1, keepdim=True)
        first = torch.where(known.view(-1, 1, 1, 1), logs[:, :1], any_background)
        logs = torch.cat([first, logs[:, 1:]], 1)
    return -(weights * target * logs).sum() / (weights * target).sum()


def soft_jaccard(occupancy: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - intersection over union of masks cut at one half, the cut softened: both (B, H, W) in [0, 1]."""
    mask = torch.sigmoid(_STEEPNESS * (occupancy - 0.5))
    truth = (wanted >= 0.5).to(mask.dtype)
    both = (mask * truth).sum()
    union = mask.sum() + truth.sum() - both
    return 1 - (both + 1) / (union + 1)


def parser_loss(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    *,
    jaccard: float,
    cells: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Return the loss of a batch.

    Args:
        logits: (B, 22, 64, 32).
        target: (B, 22, 64, 32) share of each label in a cell; sums to 1.
        weights: (22,) of the labels in the cross-entropy.
        cells: (B, 64, 32) weights of the cells in the cross-entropy; None: all alike.
        known: As `soft_cross_entropy` takes it.
        jaccard: Weight of the measure of whole bodies (at 64 x 32) and of the four parts (at 16 x 8), whose mean it is,
            the whole body counting `WHOLE` times.
    """
    soft = logits.softmax(1)
    weights = weights.view(1, -1, 1, 1) if cells is None else weights.view(1, -1, 1, 1) * cells[:, None]
    loss = soft_cross_entropy(logits, target, weights, known)
    masks = WHOLE * soft_jaccard(soft[:, 1:BAG].sum(1), target[:, 1:BAG].sum(1))
    for ids in PARTS:
        found = F.avg_pool2d(soft[:, list(ids)].sum(1, keepdim=True), 4)[:, 0]
        wanted = F.avg_pool2d(target[:, list(ids)].sum(1, keepdim=True), 4)[:, 0]
        masks = masks + soft_jaccard(found, wanted)
    return loss + jaccard * masks / (WHOLE + len(PARTS))

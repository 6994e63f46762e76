"""Which parts masks show: the rules of training and of calibration, applied to true or predicted masks."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.model import spatial
from pipeline.runtime.device import constant

VISIBLE_SHARES = (0.008, 0.01, 0.01, 0.003)
"""Head, upper, lower, shoes: a part whose mask covers more than this share of the map is visible. In rendered images
one shoe alone covers 0.009, an upper body 0.1."""


def visible_semantic(part_masks: Tensor) -> Tensor:
    """Return which semantic parts masks (B, 4, h, w) in [0, 1] show: (B, 4) bool."""
    return part_masks.float().mean((2, 3)) > constant(VISIBLE_SHARES, part_masks.device)


def visible_parts(part_masks: Tensor, config: ModelConfig, *, training: bool = False) -> Tensor:
    """Return which of the seven parts masks show.

    Args:
        part_masks: (B, 4, h, w) in [0, 1].
        config: Rules of head row and strips.
        training: Use the head row of training, which may differ from that of tests (`head_row_test`).

    Returns:
        (B, 7) bool in the order of `PARTS`.
    """
    _, strip_shown, _ = spatial.find_strips(part_masks, config, testing=not training)
    return torch.cat([visible_semantic(part_masks), strip_shown], 1)

"""True masks of images, as losses and calibration use them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.formats.masks import PART_NAMES


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """Masks of N images, stored (uint8, 0..255) or augmented (float32, 0..1).

    Attributes:
        parts: (N, 4, h, w) share of each cell, of 16 or 8 pixels, that shows a part.
        body: (N, 1, H/4, W/4) likewise for the whole body.
        has_mask: (N,) bool; images without a mask train without L_se.
        supervised_parts: (4,) bool; the label set of the masks lacks the other parts, which are zero everywhere.
    """

    parts: Tensor
    body: Tensor
    has_mask: Tensor
    supervised_parts: Tensor

    @property
    def without_mask(self) -> int:
        """Number of images without a mask."""
        return int((~self.has_mask).sum())

    def to(self, device: torch.device) -> MaskTargets:
        """Return the masks on a device."""
        return MaskTargets(*(each.to(device) for each in self._tensors))

    def never_shown(self) -> list[str]:
        """Return the supervised parts that no mask shows."""
        shown = self.parts.any(dim=3).any(dim=2).any(dim=0) | ~self.supervised_parts
        return [name for name, each in zip(PART_NAMES, shown.tolist(), strict=True) if not each]

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.parts, self.body, self.has_mask, self.supervised_parts

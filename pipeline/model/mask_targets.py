"""True masks of images, as losses and calibration use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

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

    def mapped(self, change: Callable[[Tensor], Tensor]) -> MaskTargets:
        """Return the masks with a change of the images, applied to each tensor that has a row for each of them."""
        return MaskTargets(change(self.parts), change(self.body), change(self.has_mask), self.supervised_parts)

    def rows(self, rows: Tensor) -> MaskTargets:
        """Return the masks of some images."""
        return self.mapped(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> MaskTargets:
        """Return the masks on a device."""
        return replace(self.mapped(lambda tensor: tensor.to(device)), supervised_parts=self.supervised_parts.to(device))

    def never_shown(self) -> list[str]:
        """Return the supervised parts that no mask shows."""
        shown = self.parts.any(dim=3).any(dim=2).any(dim=0) | ~self.supervised_parts
        return [name for name, each in zip(PART_NAMES, shown.tolist(), strict=True) if not each]


def resized(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return masks (N, C, h, w) at another size: files hold those of 256 x 128 pixels, and networks have other maps."""
    if masks.shape[2:] == tuple(size):
        return masks
    values = F.interpolate(masks.float(), size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return values if masks.is_floating_point() else values.round().clamp(0, 255).to(masks.dtype)

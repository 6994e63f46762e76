"""One vector per image, for trackers and indexes that compare single vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.model.embed import Embedded


def unit_vectors(features: Embedded, visible: Tensor) -> Tensor:
    """Concatenate the visible parts and the global feature, each of length 1, and scale the whole to length 1.

    The product of two such vectors is the numerator of the rule `shrunk` (m = 1) over the root of the product of both
    images' numbers of visible features. Nearest neighbours agree where visibilities agree; no single vector has exactly
    the shared-part distance, because its divisor depends on the pair.

    Args:
        features: Of B images.
        visible: (B, 7) bool.

    Returns:
        (B, 7 D + W) float32.
    """
    parts = F.normalize(features.parts, dim=2) * visible.to(features.parts.dtype).unsqueeze(2)
    return F.normalize(torch.cat([parts.flatten(1), F.normalize(features.global_feature, dim=1)], 1), dim=1)

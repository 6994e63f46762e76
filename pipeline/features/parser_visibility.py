"""Visibility by the built-in human parser instead of the network's own masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ModelConfig
from pipeline.formats.masks import PARTS_SIZE
from pipeline.model.visibility import visible_parts
from pipeline.parsing.builtin import load_builtin
from pipeline.parsing.labels import group_soft, load_grouping

GROUPING = "spreid"
THRESHOLD = 0.5
"""Visibilities are 0 or 1."""


class ParserVisibility:
    """The parts that the built-in parser finds in the network's input, by the rules that training applies to its masks.

    Args:
        model: Rules of head row and strips.
        device: Device of the parser.
    """

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        self._model = model
        self._parser = load_builtin(device)
        self._grouping = load_grouping(GROUPING, self._parser.info.label_set)

    def __call__(self, images: Tensor) -> Tensor:
        """Return visibilities (B, 7) float32, 0 or 1, of images (B, H, W, 3) uint8."""
        size = self._parser.input_size
        if tuple(images.shape[1:3]) != size:
            planes = images.permute(0, 3, 1, 2).float()
            resized = F.interpolate(planes, size=size, mode="bilinear", antialias=True)
            images = resized.round().to(torch.uint8).permute(0, 2, 3, 1)
        parts, _ = group_soft(self._parser.parse(images), self._parser.info.label_set, self._grouping)
        cells = F.adaptive_avg_pool2d(parts, PARTS_SIZE)
        return visible_parts(cells, self._model).float().to(images.device)

"""From uint8 RGB to what ImageNet backbones expect."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.runtime.device import constant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Scale to [0, 1], subtract the ImageNet mean, divide by its standard deviation.

    Args:
        images: (B, H, W, 3) or (B, 3, H, W) RGB; uint8 in 0..255, or float in the same range.

    Returns:
        (B, 3, H, W) float32 (or the float type that came in), on the same device. The memory layout of a
        (B, H, W, 3) input is kept, which makes the result channels-last without a copy.
    """
    if images.shape[-1] == 3 and images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2)
    values = images if images.is_floating_point() else images.to(torch.float32)
    # In one piece, because torch 2.11 cannot compile a function that asks for two constants.
    mean, std = constant((*IMAGENET_MEAN, *IMAGENET_STD), values.device).to(values.dtype).view(2, 1, 3, 1, 1).unbind()
    return (values - mean * 255.0) / (std * 255.0)

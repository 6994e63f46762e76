"""From uint8 images to the features that matching compares: one way for extraction, tests and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import Precision
from pipeline.model.network import Output
from pipeline.model.normalise import normalise
from pipeline.runtime.device import autocast


@dataclass(frozen=True, slots=True)
class Embedded:
    """What matching needs of B images, float32, on the network's device.

    Attributes:
        parts: (B, 7, D).
        global_feature: (B, W).
        visibility: (B, 7) mask means in [0, 1].
    """

    parts: Tensor
    global_feature: Tensor
    visibility: Tensor


def embed(model: nn.Module, images: Tensor, *, flip: bool = False, amp: Precision = "off") -> Embedded:
    """Look at images.

    Args:
        model: In evaluation mode.
        images: (B, H, W, 3) uint8 RGB of the network's input size, on its device.
        flip: Average over each image and its mirror image. Parts are symmetric, so nothing has to be swapped.
        amp: Precision of the forward pass.
    """
    with torch.inference_mode():
        return look(model, images, flip=flip, amp=amp)


def look(model: nn.Module, images: Tensor, *, flip: bool = False, amp: Precision = "off") -> Embedded:
    """As `embed`, without its inference mode: for what records the work instead of doing it."""
    straight = look_at_normal(model, normalise(images), amp)
    if not flip:
        return straight
    mirrored = look_at_normal(model, normalise(images.flip(2)), amp)
    return Embedded(
        (straight.parts + mirrored.parts) / 2,
        (straight.global_feature + mirrored.global_feature) / 2,
        (straight.visibility + mirrored.visibility) / 2,
    )


def look_at_normal(model: nn.Module, images: Tensor, amp: Precision) -> Embedded:
    """As `look`, at images that are normalised already: (B, 3, H, W) float32."""
    with autocast(images.device, amp):
        output: Output = model(images)
    return Embedded(output.parts().float(), output.matched_global.float(), output.visibility.float())

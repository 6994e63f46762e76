"""From uint8 images to the features that matching compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import Precision
from pipeline.errors import WeightsError
from pipeline.model.normalise import normalise
from pipeline.model.output import NetworkOutput
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


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, *, flip: bool = False, amp: Precision = "off") -> Embedded:
    """Embed a batch of images.

    Args:
        network: In evaluation mode.
        images: (B, H, W, 3) uint8 RGB of the network's input size, on its device.
        flip: Average over each image and its mirror image. Parts are symmetric, so nothing has to be swapped.
        amp: Precision of the forward pass.
    """
    found = []
    for each in (images, images.flip(2)) if flip else (images,):
        with autocast(images.device, amp):
            output: NetworkOutput = network(normalise(each))
        found.append((output.matched.float(), output.matched_global.float(), output.visibility.float()))
    return Embedded(*(sum(values[1:], values[0]) / len(values) for values in zip(*found, strict=True)))


@torch.inference_mode()
def predict_masks(network: nn.Module, images: Tensor) -> Tensor:
    """Predict part masks (B, 4, h, w) uint8, 255 where the network is certain of the part; arguments as of `embed`.

    Raises:
        WeightsError: The network has no part masks.
    """
    output: NetworkOutput = network(normalise(images))
    if output.part_mask_logits is None:
        raise WeightsError("this network has no part masks", expected="a network of the kind sgsfa")
    return (torch.sigmoid(output.part_mask_logits.float()) * 255).round().to(torch.uint8)

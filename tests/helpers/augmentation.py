"""Batches of noise with masks, and random augmentation parameters for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model.mask_targets import MaskTargets
from pipeline.training.augment import AugmentParams, augment, draw_params

HEIGHT, WIDTH = 32, 16
TILES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 4, 12, 8), dtype=np.uint8))
EVERYTHING = {"flip": 0.5, "erase": 0.6, "pad": 6, "occlude": 0.6, "truncate": 0.5, "colour_jitter": 0.3}


def everything(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(EVERYTHING | changes)


def params_of(
    seed: int, count: int = 6, size: tuple[int, int] = (HEIGHT, WIDTH), *, padded: float = 0.0, **changes: object
) -> AugmentParams:
    numbers, config = torch.Generator().manual_seed(seed), everything(**changes)
    return draw_params(numbers, count, *size, config, tiles=len(TILES), padded=padded)


def batch_of(seed: int, count: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stream = np.random.default_rng(seed)
    images = stream.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    parts = stream.integers(0, 256, (count, 4, HEIGHT // 16, WIDTH // 16), dtype=np.uint8)
    body = stream.integers(0, 256, (count, 1, HEIGHT // 4, WIDTH // 4), dtype=np.uint8)
    return images, parts, body


def augmented(images: Tensor, parts: Tensor, body: Tensor, params: AugmentParams) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented images, part masks and body masks."""
    has_mask, supervised = (torch.ones(n, dtype=torch.bool, device=images.device) for n in (len(images), 4))
    masks = MaskTargets(parts, body, has_mask, supervised)
    images, masks = augment(images, masks, params, TILES.to(images.device))
    assert len(images) == len(masks.has_mask)
    return images, masks.parts, masks.body

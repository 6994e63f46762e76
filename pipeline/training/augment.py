"""Augmentation of a whole batch at once, on the device, from uint8 images and masks together.

What is drawn (`draw`, on the host, a few numbers an image) is apart from what is done with it (`augment`, on the
device), so that a step can be repeated exactly and compared with a slow version that treats one image at a time.

The order: horizontal flip, pad and crop, occluding patch, random erasing, colour jitter, normalisation. What is erased
takes the mean colour of the image as it is stored: the black of a crop and the colours of a pasted patch are not the
image's, and a jitter then changes the erased area as it changes the rest. Masks follow exactly: a mask cell is the
share of its pixels that show the part, pixels that a crop, a patch or an erased rectangle takes away count as empty,
and shares are computed in closed form (`overlap`) without going through pixels. A flip swaps no part: head, upper,
lower and shoes are symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model.normalise import normalise
from pipeline.runtime.device import constant

ERASE_AREA = (0.02, 0.4)
"""Share of the image that is erased (Zhong et al., Random Erasing, 2020)."""

ERASE_ASPECT = (0.3, 1 / 0.3)
"""Height over width of the erased rectangle."""

PATCH_HEIGHT = (0.15, 0.6)
PATCH_WIDTH = (0.3, 1.0)
"""Sides of a pasted occluder as shares of the image's: from a bag before the knees to a car or a fence."""

_TRIES = 10
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Rectangles:
    """A rectangle of pixels an image, rows top..bottom and columns left..right, ends exclusive; each (B,) int64.

    An empty one (top == bottom) changes nothing.
    """

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def inside(self, height: int, width: int) -> Tensor:
        """(B, H, W) bool."""
        row, column = _positions(self.top, height), _positions(self.top, width)
        rows = (row >= self.top[:, None]) & (row < self.bottom[:, None])
        columns = (column >= self.left[:, None]) & (column < self.right[:, None])
        return rows[:, :, None] & columns[:, None, :]

    def intersect(self, other: Rectangles) -> Rectangles:
        """What lies in both; where nothing does, an empty rectangle."""
        top, left = torch.maximum(self.top, other.top), torch.maximum(self.left, other.left)
        bottom = torch.maximum(torch.minimum(self.bottom, other.bottom), top)
        right = torch.maximum(torch.minimum(self.right, other.right), left)
        return Rectangles(top, bottom, left, right)


@dataclass(frozen=True, slots=True)
class Draws:
    """All random choices for a batch of B images.

    Attributes:
        flip: (B,) bool.
        dy: (B,) int64; output row y shows row y + dy of the flipped image, black where there is none.
        dx: (B,) int64, likewise for columns.
        patch: Where the occluder goes.
        donor: (B,) int64; the image of the batch that the occluder is cut from.
        donor_dy: (B,) int64; the occluder's row y is the donor's row y + donor_dy.
        donor_dx: (B,) int64.
        brightness: (B,) factor of all values.
        contrast: (B,) factor of the distance from the image's mean grey.
        saturation: (B,) factor of the distance from the pixel's grey.
        erase: Where the image is erased.
        used: Which of `crop`, `occlude`, `jitter`, `erase` can occur at all; the others are not computed.
    """

    flip: Tensor
    dy: Tensor
    dx: Tensor
    patch: Rectangles
    donor: Tensor
    donor_dy: Tensor
    donor_dx: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    erase: Rectangles
    used: frozenset[str]

    def take(self, places: slice, donor: Tensor) -> Draws:
        """The draws of some images of the batch, with their donors counted anew: one process's share."""
        return replace(_map(self, lambda tensor: tensor[places]), donor=donor)

    def to(self, device: torch.device) -> Draws:
        """On the device, by a single copy."""
        if device.type != "cuda":
            return _map(self, lambda tensor: tensor.to(device))
        tensors: list[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            tensors.append(tensor.to(torch.float64))
            return tensor

        _map(self, collect)
        # float64 holds every integer and float32 here exactly, and one transfer costs less than seventeen.
        rows = iter(torch.stack(tensors).pin_memory().to(device, non_blocking=True))
        return _map(self, lambda tensor: next(rows).to(tensor.dtype))


def draw(generator: torch.Generator, batch: int, height: int, width: int, config: TrainConfig) -> Draws:
    """Draw for a batch; the same generator state gives the same draws whatever the device.

    Args:
        generator: On the CPU, made for this step.
        batch: Images of the whole P x K batch.
        height: Image height in pixels.
        width: Image width in pixels.
        config: Probabilities and strengths.
    """

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand((batch, *more), generator=generator)

    def factor() -> Tensor:
        return uniform(1 - config.colour_jitter, 1 + config.colour_jitter)

    def below(limit: Tensor) -> Tensor:
        """Uniform integers in 0..limit."""
        return (uniform(0, 1) * (limit + 1)).long().minimum(limit)

    flip = uniform(0, 1) < config.flip
    dy, dx = (torch.randint(-config.pad, config.pad + 1, (batch,), generator=generator) for _ in range(2))

    occlude = uniform(0, 1) < config.occlude
    patch_height = (uniform(*PATCH_HEIGHT) * height).round().long()
    patch_width = (uniform(*PATCH_WIDTH) * width).round().long()
    top, left = below(height - patch_height), below(width - patch_width)
    patch = _where(occlude, top, left, patch_height, patch_width)
    # Any image but this one.
    donor = (torch.arange(batch) + 1 + below(torch.full((batch,), max(batch - 2, 0)))) % batch
    donor_dy, donor_dx = below(height - patch_height) - top, below(width - patch_width) - left

    erase = uniform(0, 1) < config.erase
    area = uniform(*ERASE_AREA, _TRIES) * (height * width)
    aspect = uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]), _TRIES).exp()
    erase_height, erase_width = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (erase_height < height) & (erase_width < width)
    # The first shape that fits, as a loop that tries until one does would take.
    first = fits.long().argmax(1, keepdim=True)
    erase_height, erase_width = erase_height.gather(1, first)[:, 0], erase_width.gather(1, first)[:, 0]
    erase = erase & fits.any(1)
    erase_height, erase_width = erase_height.clamp_max(height), erase_width.clamp_max(width)
    hole = _where(erase, below(height - erase_height), below(width - erase_width), erase_height, erase_width)
    possible = {
        "crop": config.pad > 0,
        "occlude": config.occlude > 0,
        "jitter": config.colour_jitter > 0,
        "erase": config.erase > 0,
    }
    return Draws(
        flip=flip,
        dy=dy,
        dx=dx,
        patch=patch,
        donor=donor,
        donor_dy=donor_dy,
        donor_dx=donor_dx,
        brightness=factor(),
        contrast=factor(),
        saturation=factor(),
        erase=hole,
        used=frozenset(name for name, can in possible.items() if can),
    )


def augment(images: Tensor, parts: Tensor, whole: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Apply `draws` to a batch.

    Args:
        images: (N, H, W, 3) uint8 RGB; the first B are the batch, any others serve as donors only.
        parts: (B, 4, h, w) uint8 part masks, 255 for a cell that shows nothing but the part.
        whole: (B, 1, h', w') uint8 mask of the whole body.
        draws: For B images, on the same device.

    Returns:
        Normalised images (B, 3, H, W) float32 in channels-last memory; the masks (B, 4, h, w) and (B, 1, h', w')
        float32 in [0, 1].
    """
    height, width = images.shape[1:3]
    values = _move_pixels(images, draws)
    if "erase" in draws.used:
        values = _erase(values, images[: len(values)], draws.erase)
    if "jitter" in draws.used:
        values = _jitter(values, draws)
    return (
        normalise(values.permute(0, 3, 1, 2)),
        _move_mask(parts, draws, height, width),
        _move_mask(whole, draws, height, width),
    )


def overlap(cells: int, cell: float, shift: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """How cells of a mask, seen as intervals of pixels along one axis, land in cells of the moved mask.

    Output cell i covers the pixels [i c, (i+1) c); input cell j lands on [j c - shift, (j+1) c - shift). Only pixels
    in [begin, end) count.

    Args:
        cells: Number of cells n.
        cell: Pixels a cell c.
        shift: (B,) int64.
        begin: (B,) int64.
        end: (B,) int64.

    Returns:
        (B, n, n) float32: the share of output cell i that input cell j fills.
    """
    edge = torch.arange(cells, device=shift.device, dtype=torch.float32) * cell
    out_low, in_low = edge[None, :, None], edge[None, None, :] - shift[:, None, None]
    low = torch.maximum(torch.maximum(out_low, in_low), begin[:, None, None].float())
    high = torch.minimum(torch.minimum(out_low, in_low) + cell, end[:, None, None].float())
    return (high - low).clamp_min(0.0) / cell


def _move_pixels(images: Tensor, draws: Draws) -> Tensor:
    """Flip, crop and paste in one gather; float32 (B, H, W, 3) in 0..255."""
    height, width = images.shape[1:3]
    row, column = _positions(draws.dy, height) + draws.dy[:, None], _positions(draws.dx, width) + draws.dx[:, None]
    inside_rows, inside_columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    column = torch.where(draws.flip[:, None], width - 1 - column, column)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    first = torch.arange(len(row), device=row.device)[:, None] * height
    index = ((first + row) * width)[:, :, None] + column[:, None, :]
    shown = inside_rows[:, :, None] & inside_columns[:, None, :] if "crop" in draws.used else None
    if "occlude" in draws.used:
        covered = draws.patch.inside(height, width)
        row = (_positions(draws.dy, height) + draws.donor_dy[:, None]).clamp(0, height - 1)
        column = (_positions(draws.dx, width) + draws.donor_dx[:, None]).clamp(0, width - 1)
        pasted = ((draws.donor[:, None] * height + row) * width)[:, :, None] + column[:, None, :]
        index = torch.where(covered, pasted, index)
        shown = None if shown is None else shown | covered
    values = images.reshape(-1, 3).index_select(0, index.reshape(-1)).to(torch.float32)
    values = values.view(*index.shape, 3)
    return values if shown is None else values.mul_(shown.unsqueeze(-1))


def _jitter(values: Tensor, draws: Draws) -> Tensor:
    """Brightness, then contrast about the mean grey, then saturation about each pixel's grey."""
    weights = constant(_GREY, values.device)
    values = values * draws.brightness[:, None, None, None]
    grey = (values @ weights).mean((1, 2))[:, None, None, None]
    values = grey + (values - grey) * draws.contrast[:, None, None, None]
    grey = (values @ weights).unsqueeze(-1)
    return (grey + (values - grey) * draws.saturation[:, None, None, None]).clamp(0, 255)


def _erase(values: Tensor, images: Tensor, hole: Rectangles) -> Tensor:
    """Fill the hole with the mean colour of that image (paper, Sec. 4.2), before anything was done to it."""
    erased = hole.inside(*values.shape[1:3]).unsqueeze(-1)
    return torch.where(erased, images.to(torch.float32).mean((1, 2), keepdim=True), values)


def _move_mask(mask: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Move masks with their pixels and empty what is covered; (B, C, h, w) uint8 to float32 in [0, 1]."""
    values = mask.to(torch.float32) / 255.0
    values = torch.where(draws.flip[:, None, None, None], values.flip(3), values)
    if not draws.used & {"crop", "occlude", "erase"}:
        return values
    zero = torch.zeros_like(draws.dy)
    image = Rectangles(zero, zero + height, zero, zero + width)
    moved = _within(values, draws, image, height, width)
    # Inclusion and exclusion: what the patch or the hole takes, counting what both take once.
    if "occlude" in draws.used:
        moved = moved - _within(values, draws, draws.patch, height, width)
    if "erase" in draws.used:
        moved = moved - _within(values, draws, draws.erase, height, width)
    if {"occlude", "erase"} <= draws.used:
        moved = moved + _within(values, draws, draws.patch.intersect(draws.erase), height, width)
    return moved.clamp(0.0, 1.0)


def _within(values: Tensor, draws: Draws, area: Rectangles, height: int, width: int) -> Tensor:
    """Cell shares of the moved mask, counting only the pixels inside `area`."""
    rows, columns = values.shape[2:]
    down = overlap(rows, height / rows, draws.dy, area.top, area.bottom)
    across = overlap(columns, width / columns, draws.dx, area.left, area.right)
    return down[:, None] @ values @ across[:, None].transpose(2, 3)


def _positions(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=like.device)[None, :]


def _where(chosen: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Rectangles:
    height, width = height * chosen, width * chosen
    return Rectangles(top, top + height, left, left + width)


def _map(draws: Draws, change: Callable[[Tensor], Tensor]) -> Draws:
    """Draws with every tensor changed, those of the rectangles too."""
    changed: dict[str, Any] = {}
    for item in fields(draws):
        value = getattr(draws, item.name)
        if isinstance(value, Tensor):
            changed[item.name] = change(value)
        elif isinstance(value, Rectangles):
            changed[item.name] = Rectangles(*(change(getattr(value, each.name)) for each in fields(value)))
    return replace(draws, **changed)

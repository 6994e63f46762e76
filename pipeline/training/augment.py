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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.model.normalise import normalise
from pipeline.training.tree import tensors_of, with_tensors

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
        mine = with_tensors(self, [tensor[places] for tensor in tensors_of(self)])
        return replace(mine, donor=donor)

    def packed(self) -> Tensor:
        """(17, B) float32, for a single copy to the device; exact, because no number reaches 2^24."""
        return torch.stack([tensor.to(torch.float32) for tensor in tensors_of(self)])

    @staticmethod
    def unpacked(numbers: Tensor, used: frozenset[str]) -> Draws:
        """What `packed` packed.

        Args:
            numbers: (17, B) float32.
            used: As the field of that name.
        """
        rows = iter(numbers.unbind())

        def integers() -> Tensor:
            return next(rows).to(torch.int64)

        def rectangles() -> Rectangles:
            return Rectangles(top=integers(), bottom=integers(), left=integers(), right=integers())

        # In the order of the fields.
        return Draws(
            flip=next(rows).to(torch.bool),
            dy=integers(),
            dx=integers(),
            patch=rectangles(),
            donor=integers(),
            donor_dy=integers(),
            donor_dx=integers(),
            brightness=next(rows),
            contrast=next(rows),
            saturation=next(rows),
            erase=rectangles(),
            used=used,
        )


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
        used=what_is_used(config),
    )


def what_is_used(config: TrainConfig) -> frozenset[str]:
    """Which of `crop`, `occlude`, `jitter` and `erase` can occur at all."""
    possible = {
        "crop": config.pad > 0,
        "occlude": config.occlude > 0,
        "jitter": config.colour_jitter > 0,
        "erase": config.erase > 0,
    }
    return frozenset(name for name, can in possible.items() if can)


def augment(images: Tensor, parts: Tensor, body: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Apply `draws` to a batch.

    Args:
        images: (N, H, W, 3) uint8 RGB; the first B are the batch, any others serve as donors only.
        parts: (B, 4, h, w) uint8 part masks, 255 for a cell that shows nothing but the part.
        body: (B, 1, h', w') uint8 mask of the whole body.
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
        _move_mask(body, draws, height, width),
    )


def overlap(cells: int, cell: float, shift: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """How cells of a mask, seen as intervals of pixels along one axis, land in cells of the moved mask.

    Output cell i covers the pixels [i c, (i+1) c); input cell j lands on [j c - shift, (j+1) c - shift). Only pixels
    in [begin, end) count.

    Args:
        cells: Number of cells n.
        cell: Pixels a cell c.
        shift: (...) int64.
        begin: (...) int64.
        end: (...) int64.

    Returns:
        (..., n, n) float32: the share of output cell i that input cell j fills.
    """
    edge = torch.arange(cells, device=shift.device, dtype=torch.float32) * cell
    out_low, in_low = edge[:, None], edge - shift[..., None, None]
    low = torch.maximum(torch.maximum(out_low, in_low), begin[..., None, None].float())
    high = torch.minimum(torch.minimum(out_low, in_low) + cell, end[..., None, None].float())
    return (high - low).clamp_min(0.0) / cell


def _move_pixels(images: Tensor, draws: Draws) -> Tensor:
    """Flip, crop and paste in one gather; float32 (B, H, W, 3) in 0..255."""
    height, width = images.shape[1:3]
    row, column = _positions(draws.dy, height) + draws.dy[:, None], _positions(draws.dx, width) + draws.dx[:, None]
    inside_rows, inside_columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    column = torch.where(draws.flip[:, None], width - 1 - column, column)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    # Half as much to move through memory as int64, where they suffice.
    kind = torch.int32 if images.shape[:3].numel() < 2**31 else torch.int64
    first = torch.arange(len(row), device=row.device)[:, None] * height
    index = ((first + row) * width).to(kind)[:, :, None] + column.to(kind)[:, None, :]
    shown = inside_rows[:, :, None] & inside_columns[:, None, :] if "crop" in draws.used else None
    if "occlude" in draws.used:
        covered = draws.patch.inside(height, width)
        row = (_positions(draws.dy, height) + draws.donor_dy[:, None]).clamp(0, height - 1)
        column = (_positions(draws.dx, width) + draws.donor_dx[:, None]).clamp(0, width - 1)
        pasted = ((draws.donor[:, None] * height + row) * width).to(kind)[:, :, None] + column.to(kind)[:, None, :]
        index = torch.where(covered, pasted, index)
        shown = None if shown is None else shown | covered
    values = images.reshape(-1, 3).index_select(0, index.reshape(-1)).to(torch.float32)
    values = values.view(*index.shape, 3)
    return values if shown is None else values.mul_(shown.unsqueeze(-1))


def _jitter(values: Tensor, draws: Draws) -> Tensor:
    """Brightness, then contrast about the mean grey, then saturation about each pixel's grey."""
    values = values * draws.brightness[:, None, None, None]
    grey = _grey(values).mean((1, 2), keepdim=True)
    values = grey + (values - grey) * draws.contrast[:, None, None, None]
    grey = _grey(values)
    return (grey + (values - grey) * draws.saturation[:, None, None, None]).clamp(0, 255)


def _grey(values: Tensor) -> Tensor:
    """(B, H, W, 1) luma of (B, H, W, 3)."""
    red, green, blue = values.unbind(3)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).unsqueeze(3)


def _erase(values: Tensor, images: Tensor, hole: Rectangles) -> Tensor:
    """Fill the hole with the mean colour of that image (paper, Sec. 4.2), before anything was done to it."""
    erased = hole.inside(*values.shape[1:3]).unsqueeze(-1)
    return torch.where(erased, images.to(torch.float32).mean((1, 2), keepdim=True), values)


def _what_is_seen(draws: Draws, height: int, width: int) -> list[tuple[int, Rectangles]]:
    """The pixels that still show the image: the sum of these rectangles, each with its sign."""
    zero = torch.zeros_like(draws.dy)
    seen = [(1, Rectangles(zero, zero + height, zero, zero + width))]
    # Inclusion and exclusion: what the patch or the hole takes, counting what both take once.
    if "occlude" in draws.used:
        seen.append((-1, draws.patch))
    if "erase" in draws.used:
        seen.append((-1, draws.erase))
    if {"occlude", "erase"} <= draws.used:
        seen.append((1, draws.patch.intersect(draws.erase)))
    return seen


def _move_mask(mask: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Move masks with their pixels and empty what is covered; (B, C, h, w) uint8 to float32 in [0, 1]."""
    values = mask.to(torch.float32) / 255.0
    values = torch.where(draws.flip[:, None, None, None], values.flip(3), values)
    if not draws.used & {"crop", "occlude", "erase"}:
        return values
    seen = _what_is_seen(draws, height, width)
    # All rectangles at once, (A, B) numbers each: on a GPU the number of operations counts, not their size.
    top, bottom, left, right = (
        torch.stack([getattr(area, side) for _, area in seen]) for side in ("top", "bottom", "left", "right")
    )
    rows, columns = values.shape[2:]
    down = overlap(rows, height / rows, draws.dy.expand_as(top), top, bottom)
    across = overlap(columns, width / columns, draws.dx.expand_as(top), left, right)
    shares = (down.unsqueeze(2) @ values @ across.unsqueeze(2).transpose(3, 4)).unbind()
    moved = shares[0]
    for (sign, _), share in zip(seen[1:], shares[1:], strict=True):
        moved = moved + share if sign > 0 else moved - share
    return moved.clamp(0.0, 1.0)


def _positions(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=like.device)[None, :]


def _where(chosen: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Rectangles:
    height, width = height * chosen, width * chosen
    return Rectangles(top, top + height, left, left + width)

"""Augmentation of a whole batch at once, on the device, from uint8 images and masks together.

What is drawn (`draw_params`, on the host, a few numbers per image) is apart from what is done with it (`augment`, on
the device), so that a step can be repeated exactly and compared with a slow version that treats one image at a time.

The order: horizontal flip, pad and crop, truncation, occluder, random erasing, colour jitter, normalisation, padding of
truncated images. What is erased takes the mean colour of the image as it is stored. Masks follow exactly: a mask cell
is the share of its pixels that show the part; cells are laid on the pixels of the augmented image in closed form
(`overlap`), what an occluder or an erased rectangle covers is taken away there, and pixels are averaged to cells again.
A flip swaps no part: head, upper, lower and shoes are symmetric.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ModelConfig, TrainConfig
from pipeline.datasets.images import PERSON_RATIO, PERSON_RATIOS
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.normalise import normalise
from pipeline.training.tree import tensors_of, with_tensors

PAD_HEIGHT = 256
"""Image height that `train.pad` refers to, so that a preset crops images of every size alike."""

ERASE_AREA = (0.02, 0.4)
"""Share of the image that is erased (Zhong et al., Random Erasing, 2020)."""

ERASE_ASPECT = (0.3, 1 / 0.3)
"""Height over width of the erased rectangle."""

KEPT_HEIGHT = (0.3, 0.95)
KEPT_WIDTH = (0.5, 0.95)
"""What truncation keeps of an image: its upper part, or one side."""

_TRUNCATED_BELOW = 0.75
"""Share of truncated images that are cut below; the others lose a side."""

_PLACES = (0.45, 0.3, 0.12, 0.13)
"""Shares of occluders that rise from below, reach in from a side, hang from above, or are anywhere."""

_TYPES = dict.fromkeys(("flip", "mirrored", "padded"), torch.bool)
_TYPES |= dict.fromkeys(("dy", "dx", "tile", "donor"), torch.int64)
"""Of the fields of `AugmentParams` that are not float32."""

_TRIES = 10
_GREY = (0.299, 0.587, 0.114)
_SOLID = (0.3, 0.6)
"""Body mask values at which a person who is cut out begins to be opaque, and is so entirely."""


@dataclass(frozen=True, slots=True)
class Rectangles:
    """A rectangle of pixels per image, rows top..bottom and columns left..right, ends exclusive; each (B,) float32.

    An empty one (top == bottom) changes nothing.
    """

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def inside(self, height: int, width: int) -> Tensor:
        """Return which pixels have their centre inside: (B, H, W) bool."""
        rows, columns = self.axes(height, width)
        return rows[:, :, None] & columns[:, None, :]

    def axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return which rows (B, H) and columns (B, W) have their centre inside, both bool."""
        row, column = _centres(self.top, height), _centres(self.top, width)
        rows = (row >= self.top[:, None]) & (row < self.bottom[:, None])
        return rows, (column >= self.left[:, None]) & (column < self.right[:, None])


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """All random choices for a batch of B images.

    Attributes:
        flip: (B,) bool.
        dy: (B,) int64; output row y shows row y + dy of the flipped image, black where there is none.
        dx: (B,) int64, likewise for columns.
        kept: What truncation keeps of the cropped image.
        occluder: Where the occluder goes; it may reach beyond the image.
        tile: (B,) int64; the cut-out that is pasted.
        mirrored: (B,) bool; whether the occluder is flipped.
        shade: (B,) factor of the occluder's brightness.
        donor: (B,) int64; the image of the batch whose person is cut out and pasted instead, or -1.
        brightness: (B,) factor of all values.
        contrast: (B,) factor of the distance from the image's mean grey.
        saturation: (B,) factor of the distance from the pixel's grey.
        erase: Where the image is erased.
        padded: (B,) bool; what is kept is padded if `images.padded_area` pads a crop of that shape, else stretched.
        used: Which of `crop`, `truncate`, `occlude`, `jitter`, `erase` can occur at all; the others are not computed.
    """

    flip: Tensor
    dy: Tensor
    dx: Tensor
    kept: Rectangles
    occluder: Rectangles
    tile: Tensor
    mirrored: Tensor
    shade: Tensor
    donor: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    erase: Rectangles
    padded: Tensor
    used: frozenset[str]

    def take(self, rows: slice) -> AugmentParams:
        """The parameters of some images of the batch, whose donors follow them: one process's share."""
        mine = with_tensors(self, [tensor[rows] for tensor in tensors_of(self)])
        behind = torch.arange(len(mine.donor)) + len(mine.donor)
        return replace(mine, donor=torch.where(mine.donor >= 0, behind, -1))

    def packed(self) -> Tensor:
        """(24, B) float32, for a single copy to the device; exact, because no integer reaches 2^24."""
        return torch.stack([tensor.to(torch.float32) for tensor in tensors_of(self)])

    @staticmethod
    def unpacked(numbers: Tensor, used: frozenset[str]) -> AugmentParams:
        """Return the parameters that `packed` packed; `used` is not among them."""
        rows = iter(numbers.unbind())
        values: dict[str, Any] = {}
        for item in fields(AugmentParams):
            if item.name in ("kept", "occluder", "erase"):
                values[item.name] = Rectangles(*itertools.islice(rows, 4))
            elif item.name != "used":
                values[item.name] = next(rows).to(_TYPES.get(item.name, torch.float32))
        return AugmentParams(**values, used=used)


@dataclass(frozen=True, slots=True)
class _Dice:
    """Random numbers for a batch of images of one size."""

    generator: torch.Generator
    batch: int
    height: int
    width: int

    def uniform(self, low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand((self.batch, *more), generator=self.generator)

    def happens(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability

    def below(self, limit: Tensor) -> Tensor:
        """Uniform integers in 0..limit."""
        return (self.uniform(0, 1) * (limit + 1)).long().minimum(limit)

    def shift(self, pixels: int) -> Tensor:
        return torch.randint(-pixels, pixels + 1, (self.batch,), generator=self.generator)


def draw_params(
    generator: torch.Generator,
    batch: int,
    height: int,
    width: int,
    config: TrainConfig,
    *,
    tiles: int,
    share: float = 1.0,
    padded: float = 0.0,
) -> AugmentParams:
    """Draw for a batch; the same generator state gives the same parameters whatever the device.

    Args:
        generator: On the CPU, made for this step.
        batch: Images of the whole P x K batch.
        height: Image height in pixels.
        width: Image width in pixels.
        config: Probabilities and strengths.
        tiles: Number of cut-outs to choose from.
        share: Factor in [0, 1] of the probabilities of occlusion and truncation, for their gradual introduction.
        padded: Probability that a truncated image, if it is left with less than 80 % of its height or two thirds of its
            width, is padded instead of stretched.
    """
    dice = _Dice(generator, batch, height, width)
    pad = round(config.pad * height / PAD_HEIGHT)

    def factor() -> Tensor:
        return dice.uniform(1 - config.colour_jitter, 1 + config.colour_jitter)

    # Any image but this one.
    other = (torch.arange(batch) + 1 + dice.below(torch.full((batch,), max(batch - 2, 0)))) % batch
    return AugmentParams(
        flip=dice.happens(config.flip),
        dy=dice.shift(pad),
        dx=dice.shift(pad),
        kept=_draw_kept(dice, config.truncate * share),
        occluder=_draw_occluder(dice, config.occlude * share),
        tile=dice.below(torch.full((batch,), tiles - 1)),
        mirrored=dice.happens(0.5),
        shade=dice.uniform(0.6, 1.3),
        donor=torch.where(dice.happens(config.occlude_people), other, -1),
        brightness=factor(),
        contrast=factor(),
        saturation=factor(),
        erase=_draw_erased(dice, config.erase),
        padded=dice.happens(padded),
        used=used_augmentations(config),
    )


def padding_probability(model: ModelConfig) -> float:
    """Return `padded` of `draw_params`. Data sets also have truncated crops that were resized before."""
    return 0.5 if model.fit == "pad" else 0.0


def _draw_kept(dice: _Dice, probability: float) -> Rectangles:
    """What truncation keeps: the upper part, or the left or right one; else the whole image."""
    truncated, below = dice.happens(probability), dice.happens(_TRUNCATED_BELOW)
    rows = torch.where(truncated & below, dice.uniform(*KEPT_HEIGHT), 1.0) * dice.height
    columns = torch.where(truncated & ~below, dice.uniform(*KEPT_WIDTH), 1.0) * dice.width
    left = (dice.width - columns) * dice.happens(0.5)
    return Rectangles(torch.zeros_like(rows), rows, left, left + columns)


def _draw_occluder(dice: _Dice, probability: float) -> Rectangles:
    """Draw where an occluder is: rising from below, reaching in from a side, hanging from above, or anywhere."""
    uniform = dice.uniform
    middle, half = uniform(0.2, 0.8), uniform(0.25, 0.8)
    left, right = middle - half, middle + half
    covered = uniform(0.2, 0.6)
    beyond = covered - uniform(0.3, 0.9)
    from_left = dice.happens(0.5)
    side_left, side_right = torch.where(from_left, beyond, 1 - covered), torch.where(from_left, covered, 1 - beyond)
    top = uniform(0.0, 0.7)
    places = torch.stack(
        [
            torch.stack([1 - uniform(0.15, 0.75), uniform(1.0, 1.3), left, right]),
            torch.stack([uniform(-0.1, 0.6), uniform(0.8, 1.3), side_left, side_right]),
            torch.stack([uniform(-0.3, 0.0), uniform(0.1, 0.45), left, right]),
            torch.stack([top, top + uniform(0.15, 0.5), left, right]),
        ]
    )
    share = torch.tensor(_PLACES).cumsum(0)
    chosen = (uniform(0, 1).unsqueeze(1) >= share[:-1]).sum(1)
    edges = places.gather(0, chosen.expand(1, 4, -1))[0] * dice.happens(probability)
    return Rectangles(edges[0] * dice.height, edges[1] * dice.height, edges[2] * dice.width, edges[3] * dice.width)


def _draw_erased(dice: _Dice, probability: float) -> Rectangles:
    height, width = dice.height, dice.width
    erase = dice.happens(probability)
    area = dice.uniform(*ERASE_AREA, _TRIES) * (height * width)
    aspect = dice.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]), _TRIES).exp()
    tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    # The first shape that fits, as a loop that tries until one does would take.
    first = fits.long().argmax(1, keepdim=True)
    chosen = erase & fits.any(1)
    tall = tall.gather(1, first)[:, 0].clamp_max(height) * chosen
    wide = wide.gather(1, first)[:, 0].clamp_max(width) * chosen
    top, left = dice.below(height - tall).float(), dice.below(width - wide).float()
    return Rectangles(top, top + tall, left, left + wide)


def used_augmentations(config: TrainConfig) -> frozenset[str]:
    """Which of `crop`, `truncate`, `occlude`, `jitter` and `erase` can occur at all."""
    strengths = {
        "crop": config.pad,
        "truncate": config.truncate,
        "occlude": config.occlude,
        "jitter": config.colour_jitter,
        "erase": config.erase,
    }
    return frozenset(name for name, strength in strengths.items() if strength > 0)


def augment(images: Tensor, masks: MaskTargets, params: AugmentParams, tiles: Tensor) -> tuple[Tensor, MaskTargets]:
    """Apply `params` to a batch.

    Args:
        images: (N, H, W, 3) uint8 RGB; the first B are the batch, any others serve as donors only.
        masks: Of the N images, as stored.
        params: For B images, on the same device.
        tiles: (T, 4, th, tw) uint8 RGBA cut-outs.

    Returns:
        Normalised images (B, 3, H, W) float32 in channels-last memory, and their masks, float32 in [0, 1].
    """
    height, width = images.shape[1:3]
    batch = len(params.flip)
    values = _move_pixels(images[:batch], params)
    frame = _frame(params, height, width)
    if "truncate" in params.used:
        values = _stretch(values, params.kept, frame)
    uncovered: Tensor | None = None
    if "occlude" in params.used:
        colour, opacity = _occluders(images, masks.body, params, tiles)
        values = values * (1.0 - opacity) + colour * opacity
        uncovered = 1.0 - opacity[..., 0]
    if "erase" in params.used:
        erased = params.erase.inside(height, width)
        # The mean colour of that image (paper, Sec. 4.2), before anything was done to it.
        mean = images[:batch].to(torch.float32).mean((1, 2), keepdim=True)
        values = torch.where(erased.unsqueeze(-1), mean, values)
    if "jitter" in params.used:
        values = _jitter(values, params)
    parts, body = [
        _move_mask(each[:batch], params, frame, (height, width), uncovered) for each in (masks.parts, masks.body)
    ]
    moved = MaskTargets(parts, body, masks.has_mask[:batch], masks.supervised_parts)
    normal = normalise(values.permute(0, 3, 1, 2))
    if "truncate" in params.used:
        # Last, so that the padding is constant, as it is where features are extracted.
        normal = normal * frame.inside(height, width).unsqueeze(1)
    return normal, moved


def _frame(params: AugmentParams, height: int, width: int) -> Rectangles:
    """Where what is kept of each image goes; the rest is padding."""
    kept, zero = params.kept, torch.zeros_like(params.kept.top)
    rows, columns = kept.bottom - kept.top, kept.right - kept.left
    # What is left of a crop of a whole person, by the rule of `images.padded_area`.
    ratio = rows / height / (columns / width) * PERSON_RATIO
    padded = params.padded & ((ratio < PERSON_RATIOS[0]) | (ratio > PERSON_RATIOS[1]))
    rows, columns = (torch.where(padded, own.round(), size) for own, size in ((rows, height), (columns, width)))
    left = ((width - columns) / 2).floor()
    return Rectangles(zero, rows, left, left + columns)


def overlap(cells: int, length: int, shown: tuple[Tensor, Tensor], where: tuple[Tensor, Tensor]) -> Tensor:
    """How the cells of a mask, seen as intervals of pixels along one axis, cover the pixels of the moved image.

    Pixels b to e of the moved image show the interval [f, l) of the original: pixel y shows [f + (y - b) s,
    f + (y + 1 - b) s), where s = (l - f) / (e - b), and pixels outside of b to e nothing. Cell j is [j c, (j + 1) c),
    where c = length / cells.

    Args:
        cells: Number of cells n.
        length: Number of pixels L of the image.
        shown: f and l, each (B,).
        where: b and e, each (B,).

    Returns:
        (B, L, n) float32: the share of each pixel that each cell fills.
    """
    size = length / cells
    (first, last), (begin, end) = ([each[:, None, None] for each in pair] for pair in (shown, where))
    scale = (last - first) / (end - begin)
    pixel = (torch.arange(length, device=first.device, dtype=torch.float32)[:, None] - begin) * scale + first
    cell = torch.arange(cells, device=first.device, dtype=torch.float32) * size
    low, high = torch.maximum(torch.maximum(pixel, cell), first), torch.minimum(pixel + scale, cell + size)
    return (torch.minimum(high, last) - low).clamp_min(0.0) / scale


def _move_pixels(images: Tensor, params: AugmentParams) -> Tensor:
    """Flip and crop in one gather; float32 (B, H, W, 3) in 0..255."""
    batch, height, width = images.shape[:3]
    row = torch.arange(height, device=images.device) + params.dy[:, None]
    column = torch.arange(width, device=images.device) + params.dx[:, None]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    column = torch.where(params.flip[:, None], width - 1 - column, column)
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    # Half as much to move through memory as int64, where they suffice.
    kind = torch.int32 if images.shape[:3].numel() < 2**31 else torch.int64
    first = torch.arange(batch, device=row.device)[:, None] * height
    index = ((first + row) * width).to(kind)[:, :, None] + column.to(kind)[:, None, :]
    values = images.reshape(-1, 3).index_select(0, index.reshape(-1)).to(torch.float32).view(*index.shape, 3)
    return values.mul_(inside.unsqueeze(-1)) if "crop" in params.used else values


def _stretch(values: Tensor, kept: Rectangles, frame: Rectangles) -> Tensor:
    """Stretch what is kept of each (H, W, 3) image to its place in the frame, bilinearly."""
    down = _bilinear(values.shape[1], (kept.top, kept.bottom), (frame.top, frame.bottom))
    across = _bilinear(values.shape[2], (kept.left, kept.right), (frame.left, frame.right))
    # As two plain products, which leave the channels last.
    return across.unsqueeze(1) @ (down @ values.flatten(2)).view_as(values)


def _bilinear(length: int, shown: tuple[Tensor, Tensor], where: tuple[Tensor, Tensor]) -> Tensor:
    """(B, L, L) weights of old pixels in new ones, arguments as in `overlap`; the identity where all is kept."""
    (first, last), (begin, end) = ([each[:, None] for each in pair] for pair in (shown, where))
    scale = (last - first) / (end - begin)
    place = (first + (_centres(begin, length) - begin) * scale - 0.5).clamp(0.0, length - 1.0)
    old = torch.arange(length, device=begin.device, dtype=torch.float32)
    return (1.0 - (place[:, :, None] - old).abs()).clamp_min(0.0)


def _occluders(images: Tensor, body: Tensor, params: AugmentParams, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Colour (B, H, W, 3) in 0..255 and opacity (B, H, W, 1) in [0, 1] of the occluder of each image."""
    height, width = images.shape[1:3]
    where = params.occluder
    rows = _inside(where.top, where.bottom, height)
    columns = _inside(where.left, where.right, width)
    columns = torch.where(params.mirrored[:, None], -columns, columns)
    grid = torch.stack([columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], 3)
    thing = _sampled(_premultiplied(tiles[params.tile].to(torch.float32)), grid)

    donor = params.donor.clamp_min(0)
    low, high = _SOLID
    down, across = (_upsampling(*sizes, like=where.top) for sizes in zip(body.shape[2:], (height, width), strict=True))
    outline = down @ (body[donor].to(torch.float32) / 255) @ across.T
    outline = ((outline - low) / (high - low)).clamp(0.0, 1.0) * 255
    person = torch.cat([images[donor].permute(0, 3, 1, 2).to(torch.float32), outline], 1)
    # Without a mask of its own a person cannot be cut out.
    is_person = (params.donor >= 0) & (body[donor] > 0).flatten(1).any(1)
    pasted = torch.where(is_person[:, None, None, None], _sampled(_premultiplied(person), grid), thing)
    pasted = pasted.permute(0, 2, 3, 1)
    colour, opacity = pasted[..., :3], pasted[..., 3:]
    shaded = (colour * params.shade[:, None, None, None] / opacity.clamp_min(1e-3)).clamp(0, 255)
    return shaded, opacity


def _upsampling(cells: int, length: int, *, like: Tensor) -> Tensor:
    """(L, n) bilinear weights of cells in pixels; by hand, because interpolation is not deterministic on every GPU."""
    place = (_centres(like, length)[0] * (cells / length) - 0.5).clamp(0.0, cells - 1.0)
    cell = torch.arange(cells, device=like.device, dtype=torch.float32)
    return (1.0 - (place[:, None] - cell).abs()).clamp_min(0.0)


def _premultiplied(tiles: Tensor) -> Tensor:
    """(B, 4, H, W) RGBA in 0..255 to colour times opacity in 0..255 and opacity in [0, 1]."""
    opacity = tiles[:, 3:] / 255
    return torch.cat([tiles[:, :3] * opacity, opacity], 1)


def _sampled(tiles: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _inside(begin: Tensor, end: Tensor, length: int) -> Tensor:
    """(B, L) where each pixel lies within [begin, end), from -1 to 1; far outside where that is empty."""
    share = (_centres(begin, length) - begin[:, None]) / (end - begin).clamp_min(1e-3)[:, None]
    return torch.where((end > begin)[:, None], 2.0 * share - 1.0, 4.0)


def _jitter(values: Tensor, params: AugmentParams) -> Tensor:
    """Brightness, then contrast about the mean grey, then saturation about each pixel's grey."""
    values = values * params.brightness[:, None, None, None]
    grey = _grey(values).mean((1, 2), keepdim=True)
    values = grey + (values - grey) * params.contrast[:, None, None, None]
    grey = _grey(values)
    return (grey + (values - grey) * params.saturation[:, None, None, None]).clamp(0, 255)


def _grey(values: Tensor) -> Tensor:
    """(B, H, W, 1) luma of (B, H, W, 3)."""
    red, green, blue = values.unbind(3)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue).unsqueeze(3)


def _move_mask(
    mask: Tensor, params: AugmentParams, frame: Rectangles, size: tuple[int, int], uncovered: Tensor | None
) -> Tensor:
    """Move masks (B, C, h, w) uint8 with their pixels; float32 in [0, 1], less what is covered or erased.

    `uncovered` is the share of each pixel (B, H, W) that no occluder covers; None: all of it.
    """
    values = mask.to(torch.float32) / 255.0
    values = torch.where(params.flip[:, None, None, None], values.flip(3), values)
    if not params.used - {"jitter"}:
        return values
    (height, width), (rows, columns), kept = size, mask.shape[2:], params.kept
    dy, dx = params.dy, params.dx
    down = overlap(rows, height, (dy + kept.top, dy + kept.bottom), (frame.top, frame.bottom))
    across = overlap(columns, width, (dx + kept.left, dx + kept.right), (frame.left, frame.right))
    if uncovered is not None:
        pixels = down.unsqueeze(1) @ values @ across.unsqueeze(1).transpose(2, 3)
        left = uncovered * ~params.erase.inside(height, width) if "erase" in params.used else uncovered
        return F.adaptive_avg_pool2d(pixels * left.unsqueeze(1), (rows, columns))
    # Without occluders only rectangles are missing: a few products of the size of the mask instead of the image.
    moved = _cells(down, rows) @ values @ _cells(across, columns).mT
    if "erase" in params.used:
        erased_rows, erased_columns = params.erase.axes(height, width)
        erased_down, erased_across = down * erased_rows.unsqueeze(2), across * erased_columns.unsqueeze(2)
        moved = moved - _cells(erased_down, rows) @ values @ _cells(erased_across, columns).mT
    return moved.clamp(0.0, 1.0)


def _cells(weights: Tensor, cells: int) -> Tensor:
    """Average the pixels (B, L, n) of each cell: (B, 1, cells, n)."""
    return weights.reshape(len(weights), cells, -1, weights.shape[2]).mean(2).unsqueeze(1)


def _centres(like: Tensor, count: int) -> Tensor:
    """(1, count) centres of pixels."""
    return torch.arange(count, device=like.device, dtype=torch.float32)[None, :] + 0.5

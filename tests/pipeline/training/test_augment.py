"""The batched augmentation against one that treats a single image, pixel by pixel."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.images import PERSON_RATIO, padded_area
from pipeline.model.normalise import IMAGENET_MEAN, IMAGENET_STD
from pipeline.training.augment import KEPT_HEIGHT, AugmentParams, Rectangles, draw_params, overlap
from pipeline.training.occluders import TILE_HEIGHT, TILE_WIDTH, occluder_tiles, read_tiles
from pipeline.training.tree import tensors_of
from tests.helpers.augmentation import HEIGHT, TILES, WIDTH, augmented, batch_of, everything, params_of


def interpolated(picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """A picture's value at a place between pixel centres; zero outside."""
    row, column = int(np.floor(y)), int(np.floor(x))
    found = np.zeros(picture.shape[2])
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - abs(y - row - dy)) * (1 - abs(x - column - dx))
            if 0 <= row + dy < picture.shape[0] and 0 <= column + dx < picture.shape[1]:
                found += weight * picture[row + dy, column + dx]
    return found


def edges(rectangle: Rectangles, i: int) -> tuple[float, float, float, float]:
    return tuple(float(getattr(rectangle, field.name)[i]) for field in fields(rectangle))


def pasted(params: AugmentParams, images: np.ndarray, body: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour (H, W, 3) and opacity (H, W, 1) of the occluder of image i."""
    donor = int(params.donor[i])
    if donor >= 0 and body[donor].any():
        mask = torch.from_numpy(body[donor : donor + 1]).float() / 255
        full = torch.nn.functional.interpolate(mask, size=(HEIGHT, WIDTH), mode="bilinear")[0, 0].double().numpy()
        source = np.dstack([images[donor], ((full - 0.3) / 0.3).clip(0, 1) * 255]).astype(np.float64)
    else:
        source = TILES[int(params.tile[i])].permute(1, 2, 0).double().numpy()
    source = source.copy()
    source[..., 3:] /= 255
    source[..., :3] *= source[..., 3:]
    top, bottom, left, right = edges(params.occluder, i)
    picture = np.zeros((HEIGHT, WIDTH, 4))
    for y in range(HEIGHT) if bottom > top else ():
        for x in range(WIDTH):
            down, across = (y + 0.5 - top) / (bottom - top), (x + 0.5 - left) / (right - left)
            across = 1 - across if params.mirrored[i] else across
            picture[y, x] = interpolated(source, down * source.shape[0] - 0.5, across * source.shape[1] - 0.5)
    opacity = picture[..., 3:]
    return (picture[..., :3] * float(params.shade[i]) / opacity.clip(1e-3)).clip(0, 255), opacity


def frame_of(params: AugmentParams, i: int) -> tuple[int, int, int, int]:
    """First and last row and column, ends exclusive, of what is kept of image i, by the rule for files."""
    if not params.padded[i]:
        return 0, HEIGHT, 0, WIDTH
    top, bottom, left, right = edges(params.kept, i)
    # The crop of a whole person is 2:1 whatever the frame.
    crop = (bottom - top) * PERSON_RATIO / HEIGHT, (right - left) / WIDTH
    area = padded_area(*(round(1e7 * side) for side in crop), HEIGHT, WIDTH)
    top, left, bottom, right = (round(edge * size) for edge, size in zip(area, (HEIGHT, WIDTH) * 2, strict=True))
    return top, bottom, left, right


def moved_cells(mask: np.ndarray, params: AugmentParams, i: int) -> np.ndarray:
    """(C, H, W): what each pixel of the moved image shows of a mask (C, h, w), by fine sampling."""
    fine = 8 if params.used & {"truncate"} else 1
    rows, columns = HEIGHT // mask.shape[1], WIDTH // mask.shape[2]
    full = np.repeat(np.repeat(mask.astype(np.float64) / 255, rows, 1), columns, 2)
    full = full[:, :, ::-1] if params.flip[i] else full
    top, bottom, left, right = edges(params.kept, i)
    begin, end, first, last = frame_of(params, i)
    out = np.zeros((mask.shape[0], HEIGHT, WIDTH))
    offsets = (np.arange(fine) + 0.5) / fine
    for y in range(HEIGHT):
        source_rows = int(params.dy[i]) + top + (y - begin + offsets) * (bottom - top) / (end - begin)
        for x in range(WIDTH):
            if not (begin <= y < end and first <= x < last):
                continue
            source_columns = int(params.dx[i]) + left + (x - first + offsets) * (right - left) / (last - first)
            inside_rows = source_rows[(source_rows >= 0) & (source_rows < HEIGHT)].astype(int)
            inside_columns = source_columns[(source_columns >= 0) & (source_columns < WIDTH)].astype(int)
            out[:, y, x] = full[:, inside_rows][:, :, inside_columns].sum((1, 2)) / fine**2
    return out


def literal(images: np.ndarray, parts: np.ndarray, body: np.ndarray, params: AugmentParams, i: int):
    """One image, one step after the other."""
    image = images[i][:, ::-1] if params.flip[i] else images[i]
    cropped = np.zeros(image.shape)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            source = y + int(params.dy[i]), x + int(params.dx[i])
            if 0 <= source[0] < HEIGHT and 0 <= source[1] < WIDTH:
                cropped[y, x] = image[source]
    top, bottom, left, right = edges(params.kept, i)
    begin, end, first, last = frame_of(params, i)
    values = np.zeros(image.shape)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            down = np.clip(top + (y + 0.5 - begin) * (bottom - top) / (end - begin) - 0.5, 0, HEIGHT - 1)
            across = np.clip(left + (x + 0.5 - first) * (right - left) / (last - first) - 0.5, 0, WIDTH - 1)
            values[y, x] = interpolated(cropped, down, across)
    colour, opacity = pasted(params, images, body, i)
    values = values * (1 - opacity) + colour * opacity
    uncovered = 1 - opacity[..., 0]
    top, bottom, left, right = (int(edge) for edge in edges(params.erase, i))
    values[top:bottom, left:right] = images[i].reshape(-1, 3).astype(np.float64).mean(0)
    uncovered[top:bottom, left:right] = 0
    values = values * float(params.brightness[i])
    grey = np.array([0.299, 0.587, 0.114])
    mean = (values @ grey).mean()
    values = mean + (values - mean) * float(params.contrast[i])
    each = (values @ grey)[..., None]
    values = np.clip(each + (values - each) * float(params.saturation[i]), 0, 255)
    normal = (values / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    normal[:begin], normal[end:], normal[:, :first], normal[:, last:] = 0, 0, 0, 0
    cells = []
    for mask in (parts[i], body[i]):
        pixels = moved_cells(mask, params, i) * uncovered
        count, rows, columns = mask.shape
        cells.append(pixels.reshape(count, rows, HEIGHT // rows, columns, WIDTH // columns).mean((2, 4)))
    return normal.transpose(2, 0, 1), cells


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(), ("pad",), ("occlude",), ("truncate",), ("erase",)]))
def test_augment__equals_a_pixel_by_pixel_version(seed: int, off: tuple[str, ...]) -> None:
    images, parts, body = batch_of(seed, 3)
    # Without a mask a person cannot be cut out; an object stands there instead.
    body[1] = 0
    params = params_of(seed, 3, padded=0.5, **dict.fromkeys(off, 0))
    got = augmented(*(torch.from_numpy(each) for each in (images, parts, body)), params)
    for i in range(len(images)):
        image, (part, whole) = literal(images, parts, body, params, i)
        np.testing.assert_allclose(got[0][i].numpy(), image, atol=2e-3)
        # The slow version samples cells, where a truncation cuts pixels at any place.
        slack = 1e-5 if "truncate" in off else 0.03
        np.testing.assert_allclose(got[1][i].numpy(), part, atol=slack)
        np.testing.assert_allclose(got[2][i].numpy(), whole, atol=slack * 3)


def test_augment__is_channels_last_and_float32() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(1))
    got = augmented(images, parts, body, params_of(1))[0]
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_augment__share_of_a_batch_with_appended_donors_gives_the_same() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(2))
    params = params_of(2, occlude=1.0, occlude_people=0.7)
    together = augmented(images, parts, body, params)
    mine = slice(2, 4)
    donors = params.donor[mine].clamp_min(0)
    share = augmented(
        torch.cat([images[mine], images[donors]]),
        parts[mine],
        torch.cat([body[mine], body[donors]]),
        params.take(mine),
    )
    for a, b in zip(together, share, strict=True):
        torch.testing.assert_close(a[mine], b, rtol=0, atol=1e-6)


def test_draw_params__are_decided_by_the_generator_alone() -> None:
    one, two, other = (params_of(seed, 64) for seed in (5, 5, 6))
    for a, b in zip(tensors_of(one), tensors_of(two), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.dy, other.dy)


@given(st.integers(0, 2**31), st.integers(1, 70))
def test_params__survive_packing(seed: int, count: int) -> None:
    params = params_of(seed, count, (256, 128))
    again = AugmentParams.unpacked(params.packed(), params.used)
    assert again.used == params.used
    for one, two in zip(tensors_of(params), tensors_of(again), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_draw_params__have_their_probabilities_and_ranges() -> None:
    count = 4096
    params = params_of(0, count, (256, 128), erase=0.5, occlude=0.3, truncate=0.4, pad=10)
    assert abs(params.flip.float().mean() - 0.5) < 0.04
    assert abs((params.erase.bottom > params.erase.top).float().mean() - 0.5) < 0.04
    assert abs((params.occluder.bottom > params.occluder.top).float().mean() - 0.3) < 0.04
    height, width = params.kept.bottom - params.kept.top, params.kept.right - params.kept.left
    assert abs(((height < 256) | (width < 128)).float().mean() - 0.4) < 0.04
    assert height.min() >= KEPT_HEIGHT[0] * 256 - 1e-3
    assert params.dy.min() == -10
    assert params.dy.max() == 10
    assert params.erase.top.min() >= 0
    assert params.erase.bottom.max() <= 256
    share = (params.erase.bottom - params.erase.top) * (params.erase.right - params.erase.left) / (256 * 128)
    assert share.max() < 0.42
    assert (params.donor != torch.arange(count)).all()
    assert params.tile.max() < len(TILES)


def test_draw_params__padding_is_proportional_to_the_height() -> None:
    shifts = params_of(0, 1024, (128, 64), pad=10).dy
    assert (shifts.min(), shifts.max()) == (-5, 5)


def test_draw_params__share_scales_occlusion_and_truncation() -> None:
    generator = torch.Generator().manual_seed(0)
    none = draw_params(generator, 512, 256, 128, everything(), tiles=5, share=0.0)
    assert not (none.occluder.bottom > none.occluder.top).any()
    assert (none.kept.bottom == 256).all()


def test_augment__nothing_on_is_only_normalisation() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(3))
    params = params_of(0, flip=0, erase=0, pad=0, occlude=0, truncate=0, colour_jitter=0)
    got, part, whole = augmented(images, parts, body, params)
    back = got * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(back.permute(0, 2, 3, 1) * 255, images.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(part, parts / 255)
    torch.testing.assert_close(whole, body / 255)


def test_augment__images_that_are_not_truncated_stay_exact() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(4))
    params = params_of(0, flip=0, erase=0, pad=0, occlude=0, truncate=1, colour_jitter=0)
    whole = replace(params, kept=params_of(0, truncate=0).kept)
    plain = params_of(0, flip=0, erase=0, pad=0, occlude=0, truncate=0, colour_jitter=0)
    for a, b in zip(augmented(images, parts, body, whole), augmented(images, parts, body, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_augment__erased_area_takes_the_mean_colour_of_the_image_itself() -> None:
    images = torch.full((2, HEIGHT, WIDTH, 3), 200, dtype=torch.uint8)
    images[1] = 10
    parts, body = (torch.zeros(2, n, HEIGHT // s, WIDTH // s, dtype=torch.uint8) for n, s in ((4, 16), (1, 4)))
    # The crop makes half of the image black, and the lower half is erased.
    params = params_of(0, 2, flip=0, pad=40, truncate=0, occlude=0, erase=1.0, colour_jitter=0)
    zero, half = torch.zeros(2), torch.full((2,), HEIGHT / 2)
    lower = Rectangles(top=half, bottom=half * 2, left=zero, right=zero + WIDTH)
    params = replace(params, dy=half.long(), dx=zero.long(), erase=lower)
    got = augmented(images, parts, body, params)[0]
    back = got * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    for image, own in zip(back * 255, (200.0, 10.0), strict=True):
        erased = image[:, HEIGHT // 2 :]
        torch.testing.assert_close(erased, torch.full_like(erased, own), atol=1e-3, rtol=0)


def test_augment__padding_is_exactly_zero() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(5))
    params = params_of(0, padded=1.0, truncate=1, occlude=1, erase=1, colour_jitter=0.5)
    zero = torch.zeros(len(images))
    kept = Rectangles(top=zero, bottom=zero + HEIGHT / 2, left=zero, right=zero + WIDTH)
    normal, part, whole = augmented(images, parts, body, replace(params, kept=kept))
    filled = HEIGHT // 2
    assert normal[:, :, filled:].eq(0).all()
    assert normal[:, :, :filled].ne(0).float().mean() > 0.99
    for mask in (part, whole):
        first_empty = -(-filled * mask.shape[2] // HEIGHT)
        assert not mask[:, :, first_empty:].any()


def test_draw_params__padding_changes_no_other_choice() -> None:
    stretched, padded = params_of(3, 64, truncate=1), params_of(3, 64, truncate=1, padded=1.0)
    assert padded.padded.all()
    for one, two in zip(tensors_of(stretched), tensors_of(replace(padded, padded=stretched.padded)), strict=True):
        assert torch.equal(one, two)


def whole(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0.0]), torch.tensor([float(length)])


def test_overlap__outside_of_what_is_kept_there_is_nothing() -> None:
    moved = overlap(4, 16, (torch.tensor([4.0]), torch.tensor([8.0])), (torch.tensor([2.0]), torch.tensor([7.0])))[0]
    assert moved[2:7, 1].tolist() == pytest.approx([1.0] * 5)
    assert moved.sum().item() == pytest.approx(5)


@pytest.mark.parametrize("shift", [-20, -3, 0, 7, 16, 40])
def test_overlap__conserves_what_stays_inside(shift: int) -> None:
    moved = overlap(8, 128, (torch.tensor([shift]), torch.tensor([shift + 128.0])), whole(128))
    assert moved.sum().item() == pytest.approx(max(0, 128 - abs(shift)))


def test_overlap__stretches_what_is_kept() -> None:
    moved = overlap(4, 16, (torch.tensor([4.0]), torch.tensor([8.0])), whole(16))[0]
    assert moved[:, 1].eq(1).all()
    assert moved.sum().item() == 16


def test_occluder_tiles__are_cut_outs_with_transparency() -> None:
    tiles = occluder_tiles()
    assert tiles.shape[1:] == (4, TILE_HEIGHT, TILE_WIDTH)
    assert len(tiles) > 100
    covered = (tiles[:, 3] > 127).float().mean((1, 2))
    assert covered.min() > 0.02
    assert covered.median() < 0.9


def test_read_tiles__leaves_out_empty_ones(tmp_path) -> None:
    from PIL import Image

    sheet = np.zeros((TILE_HEIGHT, 2 * TILE_WIDTH, 4), np.uint8)
    sheet[:, :TILE_WIDTH] = 200
    Image.fromarray(sheet).save(tmp_path / "sheet.webp", lossless=True)
    assert len(read_tiles(tmp_path / "sheet.webp")) == 1

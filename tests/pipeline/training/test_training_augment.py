"""The batched augmentation against one that treats a single image, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import TrainConfig
from pipeline.model.normalise import IMAGENET_MEAN, IMAGENET_STD
from pipeline.training.augment import Draws, Rectangles, augment, draw, overlap
from pipeline.training.tree import tensors_of

HEIGHT, WIDTH = 64, 32


def everything(**changes: object) -> TrainConfig:
    strong = {"flip": 0.5, "erase": 0.6, "pad": 6, "occlude": 0.6, "colour_jitter": 0.3}
    return TrainConfig.model_validate(strong | changes)


def literal(image: np.ndarray, all_images: np.ndarray, masks: list[np.ndarray], draws: Draws, i: int):
    """One image, one step after the other, masks at the image's full resolution."""
    height, width = image.shape[:2]
    full = [
        np.repeat(np.repeat(m.astype(np.float64) / 255, height // m.shape[1], 1), width // m.shape[2], 2) for m in masks
    ]
    if draws.flip[i]:
        image = image[:, ::-1]
        full = [m[:, :, ::-1] for m in full]
    dy, dx = int(draws.dy[i]), int(draws.dx[i])
    cropped = np.zeros_like(image)
    moved = [np.zeros_like(m) for m in full]
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                cropped[y, x] = image[y + dy, x + dx]
                for new, old in zip(moved, full, strict=True):
                    new[:, y, x] = old[:, y + dy, x + dx]
    colour = image.reshape(-1, 3).astype(np.float64).mean(0)
    donor = all_images[int(draws.donor[i])]
    p = draws.patch
    for y in range(int(p.top[i]), int(p.bottom[i])):
        for x in range(int(p.left[i]), int(p.right[i])):
            cropped[y, x] = donor[y + int(draws.donor_dy[i]), x + int(draws.donor_dx[i])]
            for new in moved:
                new[:, y, x] = 0
    values = cropped.astype(np.float64)
    e = draws.erase
    for y in range(int(e.top[i]), int(e.bottom[i])):
        for x in range(int(e.left[i]), int(e.right[i])):
            values[y, x] = colour
            for new in moved:
                new[:, y, x] = 0
    values = values * float(draws.brightness[i])
    grey = np.array([0.299, 0.587, 0.114])
    mean = (values @ grey).mean()
    values = mean + (values - mean) * float(draws.contrast[i])
    each = (values @ grey)[..., None]
    values = np.clip(each + (values - each) * float(draws.saturation[i]), 0, 255)
    normal = (values / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    pooled = [
        new.reshape(m.shape[0], m.shape[1], height // m.shape[1], m.shape[2], width // m.shape[2]).mean((2, 4))
        for new, m in zip(moved, masks, strict=True)
    ]
    return normal.transpose(2, 0, 1), pooled


def batch_of(seed: int, count: int = 6):
    stream = np.random.default_rng(seed)
    images = stream.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    parts = stream.integers(0, 256, (count, 4, HEIGHT // 16, WIDTH // 16), dtype=np.uint8)
    body = stream.integers(0, 256, (count, 1, HEIGHT // 4, WIDTH // 4), dtype=np.uint8)
    return images, parts, body


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(), ("pad",), ("occlude",), ("erase",), ("colour_jitter",), ("flip",)]))
def test_equals_the_literal_version_with_the_same_draws(seed: int, off: tuple[str, ...]) -> None:
    images, parts, body = batch_of(seed)
    config = everything(**dict.fromkeys(off, 0))
    draws = draw(torch.Generator().manual_seed(seed), len(images), HEIGHT, WIDTH, config)
    got = augment(torch.from_numpy(images), torch.from_numpy(parts), torch.from_numpy(body), draws)
    for i in range(len(images)):
        image, (part, body) = literal(images[i], images, [parts[i], body[i]], draws, i)
        np.testing.assert_allclose(got[0][i].numpy(), image, atol=2e-5)
        np.testing.assert_allclose(got[1][i].numpy(), part, atol=2e-6)
        np.testing.assert_allclose(got[2][i].numpy(), body, atol=2e-6)


def test_is_channels_last_and_float32() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(1))
    draws = draw(torch.Generator().manual_seed(1), 6, HEIGHT, WIDTH, everything())
    got = augment(images, parts, body, draws)[0]
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_share_of_the_batch_with_foreign_donors_gives_the_same() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(2))
    draws = draw(torch.Generator().manual_seed(2), 6, HEIGHT, WIDTH, everything(occlude=1.0))
    all_at_once = augment(images, parts, body, draws)
    mine = slice(2, 4)
    donors = images[draws.donor[mine]]
    share = augment(torch.cat([images[mine], donors]), parts[mine], body[mine], draws.take(mine, torch.arange(2) + 2))
    for a, b in zip(all_at_once, share, strict=True):
        torch.testing.assert_close(a[mine], b, rtol=0, atol=1e-6)


def test_draws_are_decided_by_the_generator_alone() -> None:
    one, two, other = (draw(torch.Generator().manual_seed(seed), 64, HEIGHT, WIDTH, everything()) for seed in (5, 5, 6))
    assert torch.equal(one.dy, two.dy)
    assert torch.equal(one.erase.top, two.erase.top)
    assert not torch.equal(one.dy, other.dy)


@given(st.integers(0, 2**31), st.integers(1, 70))
def test_packed_draws_are_the_same(seed: int, count: int) -> None:
    draws = draw(torch.Generator().manual_seed(seed), count, 256, 128, everything())
    again = Draws.unpacked(draws.packed(), draws.used)
    assert again.used == draws.used
    for one, two in zip(tensors_of(draws), tensors_of(again), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_probabilities_and_ranges() -> None:
    count = 4096
    draws = draw(torch.Generator().manual_seed(0), count, 256, 128, everything(erase=0.5, occlude=0.3, pad=10))
    assert abs(draws.flip.float().mean() - 0.5) < 0.04
    erased = (draws.erase.bottom > draws.erase.top).float().mean()
    assert abs(erased - 0.5) < 0.04
    assert abs((draws.patch.bottom > draws.patch.top).float().mean() - 0.3) < 0.04
    assert draws.dy.min() == -10
    assert draws.dy.max() == 10
    for area in (draws.erase, draws.patch):
        assert area.top.min() >= 0
        assert area.left.min() >= 0
        assert area.bottom.max() <= 256
        assert area.right.max() <= 128
    share = (draws.erase.bottom - draws.erase.top) * (draws.erase.right - draws.erase.left) / (256 * 128)
    assert share.max() < 0.42
    assert (draws.donor != torch.arange(count)).all()
    row = draws.patch.top + draws.donor_dy
    assert row.min() >= 0
    assert (draws.patch.bottom + draws.donor_dy).max() <= 256


def test_nothing_on_is_only_normalisation() -> None:
    images, parts, body = (torch.from_numpy(a) for a in batch_of(3))
    config = everything(flip=0, erase=0, pad=0, occlude=0, colour_jitter=0)
    got, part, body = augment(images, parts, body, draw(torch.Generator(), 6, HEIGHT, WIDTH, config))
    back = got * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(back.permute(0, 2, 3, 1) * 255, images.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(part, parts / 255)
    torch.testing.assert_close(body, body / 255)


def test_what_is_erased_takes_the_mean_colour_of_the_image_itself() -> None:
    images = torch.full((2, HEIGHT, WIDTH, 3), 200, dtype=torch.uint8)
    images[1] = 10
    parts, body = (torch.zeros(2, n, HEIGHT // s, WIDTH // s, dtype=torch.uint8) for n, s in ((4, 16), (1, 4)))
    # Half the image is the crop's black, the rest is covered by the other image, and the lower half is erased.
    draws = draw(torch.Generator(), 2, HEIGHT, WIDTH, everything(flip=0, pad=40, occlude=1.0, erase=1.0))
    zero, half = torch.zeros(2, dtype=torch.int64), torch.full((2,), HEIGHT // 2)
    rows = {"top": zero, "bottom": half, "left": zero, "right": zero + WIDTH}
    lower = Rectangles(**rows | {"top": half, "bottom": half * 2})
    draws = replace(
        draws, dy=half, dx=zero, patch=Rectangles(**rows), erase=lower, used=frozenset({"crop", "occlude", "erase"})
    )
    got = augment(images, parts, body, draws)[0]
    back = got * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    for image, own in zip(back * 255, (200.0, 10.0), strict=True):
        erased = image[:, HEIGHT // 2 :]
        torch.testing.assert_close(erased, torch.full_like(erased, own), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shift", [-20, -3, 0, 7, 16, 40])
def test_overlap_of_everything_conserves_area(shift: int) -> None:
    moved = overlap(8, 16.0, torch.tensor([shift]), torch.tensor([0]), torch.tensor([128]))
    visible = max(0, 128 - abs(shift)) / 16
    assert moved.sum().item() == pytest.approx(visible)


def test_disjoint_rectangles_intersect_in_nothing() -> None:
    one = Rectangles(*(torch.tensor([v]) for v in (0, 4, 0, 4)))
    two = Rectangles(*(torch.tensor([v]) for v in (6, 9, 2, 9)))
    assert not one.intersect(two).inside(12, 12).any()
    assert one.intersect(one).inside(12, 12).sum() == 16

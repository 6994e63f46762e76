"""What lens, sensor and compression do to a picture. Label maps never pass through here: they stay true."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.runtime import seeds
from sgsfa_synth.light import Tone

Array32 = npt.NDArray[np.float32]


_CONTRAST = 1.10
"""What cameras add to a faithful rendering on their own."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """How bad a picture is.

    Attributes:
        blur: Standard deviation of the lens's blur, in shares of the image's width.
        motion: Length of horizontal motion blur, in shares of the width.
        resolution: Share of the image's own resolution that was recorded, 0.3 to 1.
        noise: Standard deviation of the sensor's noise, of full scale.
        quality: JPEG quality, 1 to 100.
    """

    blur: float
    motion: float
    resolution: float
    noise: float
    quality: int


def sample_degradation(seed: int, camera: int, random: np.random.Generator) -> Degradation:
    """Return a camera's own faults, varied by the image's `random`: distance, focus, speed, light."""
    mount = seeds.rng(seed, "degradation", camera)
    blur, resolution = abs(mount.normal(0, 0.0030)), mount.uniform(0.62, 1.25)
    noise, quality = mount.uniform(0.002, 0.014), mount.uniform(62, 95)
    return Degradation(
        blur=float(blur * random.uniform(0.5, 1.5)),
        motion=float(random.exponential(0.012)) if random.random() < 0.2 else 0.0,
        resolution=float(np.clip(resolution * random.uniform(0.72, 1.15), 0.34, 1.0)),
        noise=float(noise * random.uniform(0.7, 1.4)),
        quality=int(np.clip(quality + random.normal(0, 6), 45, 96)),
    )


def develop(radiance: Array32, tone: Tone) -> Array32:
    """Turn linear radiance (H, W, 3) into display values in [0, 1]: exposure, shoulder, sRGB, contrast, saturation."""
    light = np.maximum(radiance, 0.0) * (tone.gain * tone.exposure).astype(np.float32)
    # Rises like x in the shadows and bends over towards 1, so that a white shirt in the sun keeps its folds.
    light = light * (1 + light / 6.0) / (1 + light)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-6) ** (1 / 2.4) - 0.055)
    grey = encoded.mean(2, keepdims=True)
    encoded = grey + (encoded - grey) * tone.saturation
    encoded = 0.45 + (encoded - 0.45) * (_CONTRAST * tone.contrast) + tone.lift
    return np.asarray(np.clip(encoded, 0.0, 1.0), np.float32)


def degrade(image: Array32, how: Degradation, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return blur, shrink, add noise and round.

    Args:
        image: (H, W, 3) display values in [0, 1].
        how: The faults; `quality` is for the writer of the file.
        random: For the noise.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    sigma = how.blur * width
    if sigma > 0.2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    length = round(how.motion * width)
    if length >= 2:
        image = np.asarray(cv2.blur(image, (length, 1)), np.float32)
    small = (max(8, round(width * how.resolution)), max(16, round(height * how.resolution)))
    if small[0] < 0.97 * width:
        low = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    # Grain has the resolution of the sensor's pixels.
    grain = random.standard_normal((small[1], small[0], 3), np.float32) * np.float32(how.noise)
    if grain.shape[:2] != (height, width):
        grain = np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(np.rint(np.clip(image + grain, 0.0, 1.0) * 255), np.uint8)

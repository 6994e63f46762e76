"""Cameras: what `scene.compose` asks of one, and the fixed cameras of a benchmark."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sgsfa_synth.backdrop import Place, camera_place, sample_place
from sgsfa_synth.camera import Extent, Site, Window, camera_site
from sgsfa_synth.coverage import VISIBLE_RANGE, Coverage
from sgsfa_synth.degradation import Degradation, sample_degradation
from sgsfa_synth.light import Tone, camera_tone

Random = np.random.Generator


class Camera(Protocol):
    """What takes an image."""

    @property
    def site(self) -> Site:
        """Where the camera stands."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""

    @property
    def tone(self) -> Tone:
        """How it renders colours."""

    def place(self, random: Random) -> Place:
        """Return what it watches."""

    def degradation(self, random: Random) -> Degradation:
        """Draw blur, noise and compression of an image."""

    def box(self, random: Random, extent: Extent, coverage: Coverage, *, occluded: bool) -> Window:
        """Draw the detector's box around a person.

        Args:
            random: Stream of the image.
            extent: Box around the whole person.
            coverage: What hides the person.
            occluded: The person is meant to be occluded.
        """


class FixedCamera:
    """A mounted camera: its site, tone and faults are those of every image it takes.

    Args:
        seed: Of the data set.
        camera: Its number.
        size: (height, width) in pixels.
        tone: As in `config.SynthConfig`.
        backdrop: As in `config.SynthConfig`.
    """

    def __init__(self, seed: int, camera: int, size: tuple[int, int], tone: float, backdrop: float) -> None:
        self._seed, self._camera, self._backdrop = seed, camera, backdrop
        self.size = size
        self.site = camera_site(seed, camera)
        self.tone = camera_tone(seed, camera, tone)

    def place(self, random: Random) -> Place:
        """Return the camera's own place, or any place in a share 1 - `backdrop` of the images."""
        return camera_place(self._seed, self._camera) if random.random() < self._backdrop else sample_place(random)

    def degradation(self, random: Random) -> Degradation:
        """Draw the faults of an image around those of the camera."""
        return sample_degradation(self._seed, self._camera, random)

    def box(self, random: Random, extent: Extent, coverage: Coverage, *, occluded: bool) -> Window:
        """Draw a box: mostly tight, sometimes loose, sometimes cutting feet or a side off."""
        box = extent
        if occluded and random.random() < 0.25 and (seen := coverage.visible_extent()) is not None:
            # Detectors often box only what they see.
            box = extent.blend(seen, random.uniform(0.3, 1.0))
        margins = [random.uniform(0.005, 0.035), random.uniform(0.005, 0.035)]
        fault = random.random()
        if fault < 0.10:
            margins[1] = -random.uniform(0.03, 0.22)
        elif fault < 0.14:
            margins[0] = -random.uniform(0.01, 0.05)
        elif fault < 0.24:
            margins = [margins[0] + random.uniform(0.03, 0.14), margins[1] + random.uniform(0.03, 0.14)]
        shift = random.normal(0, 0.025)
        narrow = random.uniform(0.76, 0.92)
        aspect = self.size[1] / self.size[0]
        window = box.window(aspect, margins, shift, narrow=narrow)
        low, high = VISIBLE_RANGE
        if occluded and not low <= coverage.seen_in(window)[0] <= high:
            return extent.window(aspect, (0.02, 0.02), 0.0, narrow=narrow)
        return window

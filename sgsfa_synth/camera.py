"""Where cameras stand and how they see: one fixed site a camera, one view an image.

The scene frame of an image has the person at the origin; the camera looks along +y from (0, -distance, height). The
picture is a window cut out of the image plane, as a person detector cuts its box out of a video frame, so the focal
length has no say: perspective is decided by distance and height alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.runtime import seeds

Array = npt.NDArray[np.float64]

_NEAR = 0.15
"""Metres before the camera within which nothing is drawn."""


@dataclass(frozen=True, slots=True)
class Site:
    """A camera as it is mounted.

    Attributes:
        height: Metres above the ground.
        distance: Metres to the middle of what it watches.
        yaw: Radians; the direction in which most people walk, 0 is towards the camera.
        both_ways: Share of people who walk the other way.
        roll: Radians of tilt sideways.
    """

    height: float
    distance: float
    yaw: float
    both_ways: float
    roll: float


def camera_site(seed: int, camera: int) -> Site:
    """Return the site of camera number `camera` in the data set of `seed`."""
    random = seeds.rng(seed, "site", camera)
    return Site(
        height=float(random.uniform(1.7, 4.6)),
        distance=float(random.uniform(5.5, 13.0)),
        yaw=float(random.uniform(0, 2 * math.pi)),
        both_ways=float(random.uniform(0.2, 0.5)),
        roll=math.radians(float(random.normal(0, 1.2))),
    )


@dataclass(frozen=True, slots=True)
class View:
    """A pinhole camera in the scene frame.

    Attributes:
        position: (3,) metres.
        rotation: (3, 3); its rows are the unit vectors to the right, down and ahead of the camera.
    """

    position: Array
    rotation: Array

    @classmethod
    def looking(cls, position: Sequence[float], target: Sequence[float], roll: float = 0.0) -> View:
        """Return a camera at `position` aimed at `target`, turned by `roll` radians about its axis."""
        eye = np.asarray(position, float)
        ahead = np.asarray(target, float) - eye
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(ahead, right)
        cos, sin = math.cos(roll), math.sin(roll)
        return cls(eye, np.stack([cos * right + sin * down, cos * down - sin * right, ahead]))

    def project(self, points: npt.NDArray[np.floating]) -> tuple[Array, Array]:
        """Project points (V, 3).

        Returns:
            (V, 2) image-plane coordinates, x to the right and y down, in units of depth; and (V,) 1 / depth, which is
            -1 where a point is not before the camera.
        """
        local = (points.astype(np.float64) - self.position) @ self.rotation.T
        depth = local[:, 2]
        safe = np.maximum(depth, _NEAR)
        return local[:, :2] / safe[:, None], np.where(depth > _NEAR, 1.0 / safe, -1.0)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the image plane, in its own units."""

    left: float
    top: float
    width: float
    height: float

    def pixels(self, plane: Array, height: int, width: int) -> Array:
        """Return the pixel coordinates (V, 2) of image-plane points when the window is drawn at `height` x `width`."""
        scale = np.array([width / self.width, height / self.height])
        return np.asarray((plane - [self.left, self.top]) * scale)


@dataclass(frozen=True, slots=True)
class Extent:
    """The bounding box of what is projected, in image-plane units."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of(cls, plane: Array) -> Extent:
        """Return the box around points (V, 2); V must not be 0."""
        low, high = plane.min(0), plane.max(0)
        return cls(float(low[0]), float(low[1]), float(high[0]), float(high[1]))

    def blend(self, other: Extent, share: float) -> Extent:
        """Return this box moved towards `other` by `share` in [0, 1]."""

        def mix(a: float, b: float) -> float:
            return a + (b - a) * share

        return Extent(
            mix(self.left, other.left),
            mix(self.top, other.top),
            mix(self.right, other.right),
            mix(self.bottom, other.bottom),
        )

    def window(self, aspect: float, margins: Sequence[float], shift: float, *, narrow: float = 1.0) -> Window:
        """Return a detector's box around this extent.

        Args:
            aspect: Width / height of the picture, and the most that the box has.
            narrow: How much narrower the box of a slim figure may be: a detector fits its box to the figure, and the
                picture is then stretched to its size, here at most by 1 / narrow.
            margins: Above and below, as shares of the extent's height; negative ones cut into the person.
            shift: Displacement to the right, as a share of the box's width.
        """
        tall = self.bottom - self.top
        top, bottom = self.top - margins[0] * tall, self.bottom + margins[1] * tall
        height = bottom - top
        width = height * aspect
        wide = (self.right - self.left) * 1.04
        width = min(max(1.1 * wide, narrow * width), width)
        if width < wide * 0.92:
            # Wide poses keep the aspect: the box grows instead of the person being squeezed.
            grown = wide * 0.94 / aspect
            top -= (grown - height) / 2
            height, width = grown, wide * 0.94
        centre = (self.left + self.right) / 2 + shift * width
        return Window(centre - width / 2, top, width, height)

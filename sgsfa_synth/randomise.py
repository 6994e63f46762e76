"""Domain randomisation: training data that transfers to real images (Tobin et al., 2017).

A benchmark has fixed cameras and identities in the same clothes. Training data for transfer does the opposite: every
image has its own camera, place, light, distance, resolution, box and compression, drawn from ranges wider than those
of real cameras, and clothes, hair and bodies vary more than in a street.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from sgsfa_synth.backdrop import Place, sample_place
from sgsfa_synth.camera import Extent, Site, Window
from sgsfa_synth.cameras import FixedCamera
from sgsfa_synth.coverage import Coverage
from sgsfa_synth.degradation import Degradation
from sgsfa_synth.identity import Coat, Colour, Identity, sample_bottom, sample_identity, sample_top, srgb
from sgsfa_synth.light import sample_tone
from sgsfa_synth.patterns import Cloth, Pattern

Random = np.random.Generator

LOOK_ALIKES = 0.35
"""Share of teams that keep their uniforms: look-alikes teach patterns, hair and bags, the others colours."""

MIN_HEIGHT = 64
"""Pixels; the smallest recorded image."""


_MIN_VISIBLE = 0.2
"""Smallest visible share of a person inside a box."""

_BOXES_TRIED = 4


class RandomCamera:
    """A camera that takes a single image.

    Args:
        random: Stream of the image.
        fixed: A camera of the data set, used for what is not randomised.
        tone: Strength of colour casts, as in `config.SynthConfig`.
        kinds: What is randomised, as in `config.SynthConfig`.
    """

    def __init__(self, random: Random, fixed: FixedCamera, tone: float, kinds: Collection[str]) -> None:
        self._fixed, self._kinds = fixed, kinds
        site = Site(
            height=float(random.uniform(1.1, 5.5)),
            distance=float(np.exp(random.uniform(math.log(3.5), math.log(18.0)))),
            yaw=float(random.uniform(0, 2 * math.pi)),
            both_ways=0.5,
            roll=math.radians(float(random.normal(0, 2.5))),
        )
        self.site, self.tone = (site, sample_tone(random, tone)) if "scene" in kinds else (fixed.site, fixed.tone)
        height, width = fixed.size
        # A file keeps the pixels that were recorded: few of a person far away.
        rows = round(float(np.exp(random.uniform(math.log(min(MIN_HEIGHT, height)), math.log(height)))))
        self.size = (rows, round(rows * width / height)) if "quality" in kinds else fixed.size

    def place(self, random: Random) -> Place:
        """Draw any place, by day, at dusk or under lamps."""
        if "scene" not in self._kinds:
            return self._fixed.place(random)
        dim = random.random() < 0.35
        return replace(
            sample_place(random),
            sun=float(random.uniform(0, 0.25) if dim else random.uniform(0.25, 1.3)),
            elevation=math.radians(float(random.uniform(12, 80))),
            warmth=float(random.normal(0, 0.9)),
        )

    def degradation(self, random: Random) -> Degradation:
        """Draw the faults of an image."""
        if "quality" not in self._kinds:
            return self._fixed.degradation(random)
        return Degradation(
            blur=float(random.exponential(0.007)),
            motion=float(random.exponential(0.025)) if random.random() < 0.2 else 0.0,
            resolution=float(min(random.uniform(0.5, 1.3), 1.0)),
            noise=float(random.exponential(0.012)),
            quality=int(random.integers(35, 97)),
        )

    def box(self, random: Random, extent: Extent, coverage: Coverage, *, occluded: bool) -> Window:
        """Draw a box: jittered borders, cut feet, heads and sides, loose boxes, boxes around the visible part."""
        if "box" not in self._kinds:
            return self._fixed.box(random, extent, coverage, occluded=occluded)
        aspect = self.size[1] / self.size[0]
        visible = coverage.visible_extent() if occluded else None
        for _ in range(_BOXES_TRIED):
            box = extent
            if visible is not None and random.random() < 0.35:
                box = extent.blend(visible, random.uniform(0.3, 1.0))
            above, below = random.normal(0.02, 0.03, 2)
            fault = random.random()
            if fault < 0.16:
                below = -random.uniform(0.03, 0.40)
            elif fault < 0.21:
                above = -random.uniform(0.02, 0.09)
            elif fault < 0.36:
                above, below = above + random.uniform(0.03, 0.20), below + random.uniform(0.03, 0.20)
            shift = random.normal(0, 0.05) + (random.normal(0, 0.15) if random.random() < 0.08 else 0.0)
            window = box.window(aspect, (above, below), shift, narrow=random.uniform(0.70, 0.95))
            if coverage.seen_in(window)[0] >= _MIN_VISIBLE:
                return window
        return extent.window(aspect, (0.02, 0.02), 0.0)


@functools.lru_cache(maxsize=512)
def varied_identity(seed: int, index: int) -> Identity:
    """Return an identity of the cast in clothes of any colour and pattern; a share of the teams keeps its uniforms.

    Args:
        seed: Of the data set.
        index: As in `identity.sample_identity`.
    """
    identity = sample_identity(seed, index)
    team = np.random.default_rng([seed, 11, index // 4])
    if team.random() < LOOK_ALIKES:
        return identity
    random = np.random.default_rng([seed, 12, index])
    garments = _WOMEN if identity.female else _MEN
    garment = str(random.choice(list(garments), p=list(garments.values())))
    outer = _any_cloth(random)
    coat = identity.coat
    if garment == "dress" or random.random() < 0.7:
        coat = None
    else:
        opening = float(random.uniform(0.02, 0.09)) if random.random() < 0.65 else -1.0
        coat = Coat(outer, float(random.uniform(0.0, 0.45)), opening, padded=bool(random.random() < 0.3))
    hair, bag, hat = identity.hair, identity.bag, identity.hat
    return replace(
        identity,
        shape=tuple(float(value) for value in np.array(identity.shape) * random.uniform(0.9, 1.6)),
        outfit=garment if coat is None else f"coat+{garment}",
        top=sample_top(random, garment, identity.female, outer if coat is None else _any_cloth(random)),
        bottom=sample_bottom(random, garment, _any_cloth(random, legs=True)),
        coat=coat,
        shoes=replace(identity.shoes, colour=any_colour(random), sole=any_colour(random)),
        hair=hair if random.random() < 0.85 else replace(hair, colour=any_colour(random)),
        hat=None if hat is None else replace(hat, colour=any_colour(random)),
        bag=None if bag is None else replace(bag, colour=any_colour(random), second=any_colour(random)),
    )


_WOMEN = {"trousers": 0.22, "jeans": 0.22, "shorts": 0.20, "skirt": 0.18, "dress": 0.18}
_MEN = {"trousers": 0.32, "jeans": 0.28, "shorts": 0.40}


def any_colour(random: Random) -> Colour:
    """Return the linear albedo of cloth: black, white, grey or blue as in most streets, otherwise any hue."""
    kind = str(random.choice(["black", "white", "grey", "blue", "any"], p=[0.17, 0.14, 0.10, 0.09, 0.50]))
    if kind == "any":
        hue, saturation, value = random.random(), random.beta(2, 2), random.uniform(0.2, 0.95)
    elif kind == "blue":
        hue, saturation, value = random.uniform(0.56, 0.68), random.uniform(0.25, 0.7), random.uniform(0.15, 0.7)
    else:
        low, high = {"black": (0.05, 0.2), "white": (0.78, 0.95), "grey": (0.2, 0.78)}[kind]
        hue, saturation, value = random.random(), random.uniform(0.0, 0.1), random.uniform(low, high)
    return srgb(*colorsys.hsv_to_rgb(float(hue), float(saturation), float(value)))


_PATTERNS = tuple(pattern for pattern in Pattern if pattern is not Pattern.PLAIN)


def _any_cloth(random: Random, *, legs: bool = False) -> Cloth:
    """Return the cloth of any colours; plain in four of ten cases, and in seven of ten below the hips."""
    plain = random.random() < (0.7 if legs else 0.4)
    pattern = Pattern.PLAIN if plain else _PATTERNS[int(random.integers(len(_PATTERNS)))]
    emblem = 0 if legs or random.random() < 0.6 else int(random.choice([1, 2, 3, 5, 6, 7]))
    return Cloth(
        pattern=pattern,
        main=any_colour(random),
        second=any_colour(random),
        third=any_colour(random),
        scale=float(np.exp(random.normal(0.2, 0.45))),
        seed=int(random.integers(1 << 15)),
        emblem=emblem,
    )

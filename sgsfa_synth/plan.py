"""Which images a rendered data set has, and what each is for. Decided before anything is drawn.

The split follows Occluded-Duke: training and test identities are disjoint, every query is occluded, about a tenth of
the gallery is, and the gallery holds people of whom no query exists (pid 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.records import DISTRACTOR_PID, Split
from pipeline.errors import ConfigError
from pipeline.runtime import seeds
from sgsfa_synth.identity import CAPACITY, TEAM

GALLERY_OCCLUSION = 0.10
"""Share of occluded gallery images."""

DISTRACTOR_SHARE = 0.20
"""Distractor identities per test identity."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to render.

    Attributes:
        identity: Index for `identity.sample_identity`.
        pid: Number in the data set, from 1; `DISTRACTOR_PID` for distractors.
        camera: Index from 0; the data set's camid is one more.
        shot: Index from 0 within identity and camera.
        split: Role.
        occluded: Whether something is put before the person.
    """

    identity: int
    pid: int
    camera: int
    shot: int
    split: Split
    occluded: bool

    @property
    def camid(self) -> int:
        """Camera as the data set numbers it."""
        return self.camera + 1

    @property
    def name(self) -> str:
        """Path of the image relative to the data set: `split/person_c{camid}s{shot}.jpg`."""
        person = f"{self.pid:05d}" if self.pid != DISTRACTOR_PID else f"00000-{self.identity:05d}"
        return f"{self.split}/{person}_c{self.camid:02d}s{self.shot + 1:02d}.jpg"


def distractor_count(ids: int, train_share: float = 0.5) -> int:
    """Return the number of gallery identities without a query."""
    return max(1, round(DISTRACTOR_SHARE * (1 - train_share) * ids))


def plan_images(
    ids: int, cameras: int, shots: int, occlusion: float, seed: int, *, train_share: float = 0.5
) -> tuple[PlannedImage, ...]:
    """Return all images, sorted by identity, camera and shot.

    A share of the identities trains, rounded to whole teams: look-alikes stay on one side, since these make ranking
    hard (a single team has to be cut), and distractors are of teams of their own. Of a test identity the first shot in
    every camera is a query; with a single shot, in every other camera. The rest of the test images are gallery, so that
    each query has a match in another camera.

    Args:
        ids: Identities, training and test together.
        cameras: At least 2.
        shots: Images per identity and camera.
        occlusion: Share of occluded training images.
        seed: Of the data set.
        train_share: Share of training identities.

    Raises:
        ConfigError: A number is outside of what can be made.
    """
    check_size(ids, cameras, shots, train_share)
    train = _training_identities(ids, seed, train_share)
    planned: list[tuple[int, int, int, int, Split]] = []
    for identity in range(ids):
        for camera in range(cameras):
            planned += [
                (identity, identity + 1, camera, shot, _split(identity, camera, shot, shots, train))
                for shot in range(shots)
            ]
    for number in range(distractor_count(ids, train_share)):
        seen_by = seeds.rng(seed, "distractor", number).permutation(cameras)[: max(1, cameras // 2)]
        for camera in sorted(int(camera) for camera in seen_by):
            planned += [
                (_first_distractor(ids) + number, DISTRACTOR_PID, camera, shot, "gallery") for shot in range(shots)
            ]

    shares: dict[Split, float] = {"train": occlusion, "query": 1.0, "gallery": GALLERY_OCCLUSION}
    occluded = np.zeros(len(planned), bool)
    for split, share in shares.items():
        members = np.array([i for i, row in enumerate(planned) if row[4] == split])
        count = round(share * len(members))
        occluded[seeds.rng(seed, "occluded", split).permutation(members)[:count]] = True
    return tuple(PlannedImage(*row, occluded=bool(flag)) for row, flag in zip(planned, occluded, strict=True))


def _training_identities(ids: int, seed: int, share: float) -> frozenset[int]:
    """Return whole teams, as many as bring the number of identities nearest to the share."""
    if ids <= TEAM:
        return frozenset(int(index) for index in seeds.rng(seed, "split").permutation(ids)[: (ids + 1) // 2])
    order = seeds.rng(seed, "split").permutation(math.ceil(ids / TEAM))
    teams = [range(int(team) * TEAM, min((int(team) + 1) * TEAM, ids)) for team in order]
    reached = np.cumsum([len(team) for team in teams[:-1]])
    cut = int(np.abs(reached - share * ids).argmin()) + 1
    return frozenset(index for team in teams[:cut] for index in team)


def _first_distractor(ids: int) -> int:
    """Return the first identity of the first team of distractors."""
    return math.ceil(ids / TEAM) * TEAM


def _split(identity: int, camera: int, shot: int, shots: int, train: frozenset[int]) -> Split:
    if identity in train:
        return "train"
    if shots == 1:
        return "query" if (camera + identity) % 2 == 0 else "gallery"
    return "query" if shot == 0 else "gallery"


def check_size(ids: int, cameras: int, shots: int, train_share: float = 0.5) -> None:
    """Refuse sizes that cannot be rendered.

    Raises:
        ConfigError: Too few or too many identities, fewer than two cameras, no shots.
    """
    if ids < 2:
        raise ConfigError(f"{ids} is too few", where="ids", expected="2 or more: one to train and one to test")
    if _first_distractor(ids) + distractor_count(ids, train_share) > CAPACITY:
        most = int(CAPACITY / (1 + DISTRACTOR_SHARE * (1 - train_share))) - 1
        raise ConfigError(
            f"{ids} identities and their distractors cannot all be made distinct",
            where="ids",
            expected=f"at most {most}",
            hint="render two sets with different seeds",
        )
    if cameras < 2:
        raise ConfigError(f"{cameras} is too few", where="cameras", expected="2 or more, to match across them")
    if shots < 1:
        raise ConfigError(f"{shots} is too few", where="shots", expected="1 or more")

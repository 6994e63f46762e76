"""Training crops by index: crop k of a run is the same on every machine and after every resumption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tools.parser.clothing import Photograph
from tools.parser.crops import HEIGHT, WIDTH, Crop, CropRules, random_crop, random_rendered

CELL = 4
LABELS = 22
_CELLS = (np.arange(HEIGHT)[:, None] // CELL * (WIDTH // CELL) + np.arange(WIDTH)[None] // CELL) * LABELS


def label_shares(labels: np.ndarray) -> np.ndarray:
    """Turn (256, 128) labels into (22, 64, 32) float32, the share of each label in each cell of 4 x 4 pixels."""
    counts = np.bincount((_CELLS + labels).ravel(), minlength=HEIGHT * WIDTH // CELL**2 * LABELS)
    shares = counts.reshape(HEIGHT // CELL, WIDTH // CELL, LABELS).transpose(2, 0, 1)
    return np.ascontiguousarray(shares, np.float32) / CELL**2


class Crops(Dataset[tuple[Tensor, Tensor, Tensor, bool]]):
    """Crops number `first` to `last` of a run.

    Each is: image (256, 128, 3), label shares (22, 64, 32), hidden share (64, 32), and whether the kinds of background
    are known, which holds for photographs and not for rendered images.

    Args:
        photographs: Photographs of the training split.
        rendered: Rendered people, or none.
        share: Of rendered people among the crops.
        rules: How crops are made.
        seed: Of everything drawn.
        first: Number of the first crop.
        last: Number after the last.
        things: Pictures to paste in front, as `cutouts.read_cutouts` gives them.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        rendered: Sequence[Crop],
        *,
        share: float,
        rules: CropRules,
        seed: int,
        first: int,
        last: int,
        things: Sequence[np.ndarray] = (),
    ) -> None:
        self._photographs = photographs
        self._rendered = rendered
        self._share = share if rendered else 0.0
        self._rules = rules
        self._seed = seed
        self._first = first
        self._count = last - first
        self._things = things

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, offset: int) -> tuple[Tensor, Tensor, Tensor, bool]:
        number = self._first + offset
        rng = np.random.default_rng((self._seed, number))
        if rng.random() < self._share:
            crop = random_rendered(rng, self._rendered[int(rng.integers(len(self._rendered)))], self._rules)
        else:
            count = len(self._photographs)
            # Every photograph once per epoch, in a new order each epoch.
            order = np.random.default_rng((self._seed, 1, number // count)).permutation(count)
            crop = random_crop(rng, self._photographs, int(order[number % count]), self._rules, self._things)
        hidden = np.zeros((HEIGHT, WIDTH)) if crop.hidden is None else crop.hidden
        hidden_share = hidden.reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL).mean((1, 3), dtype=np.float32)
        target = label_shares(crop.labels)
        known = crop.hidden is not None
        return torch.from_numpy(crop.image), torch.from_numpy(target), torch.from_numpy(hidden_share), known

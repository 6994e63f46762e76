"""How much of a person is hidden or cut off, measured on a small depth image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sgsfa_synth.camera import Extent, View, Window
from sgsfa_synth.mesh import Mesh
from sgsfa_synth.raster import rasterise

Array = npt.NDArray[np.float64]

VISIBLE_RANGE = (0.25, 0.90)
"""Smallest and largest visible share of an occluded person."""

_HEIGHT = 128
"""Pixels over the person's height."""


class Coverage:
    """Which parts of the person are hidden, measured on a small image of the whole person."""

    def __init__(self, meshes: Sequence[Mesh], view: View, extent: Extent) -> None:
        self.view = view
        pad = 0.02 * (extent.bottom - extent.top)
        size = extent.bottom - extent.top + 2 * pad
        self.height = _HEIGHT
        self.width = max(8, math.ceil((extent.right - extent.left + 2 * pad) / size * self.height))
        self.window = Window(extent.left - pad, extent.top - pad, size * self.width / self.height, size)
        alone = self._depth(meshes[0])
        self.person = alone > 0
        self.depth = alone
        self.hidden = np.zeros_like(self.person)
        for mesh in meshes[1:]:
            self.hidden |= self.hides(mesh)

    def _depth(self, mesh: Mesh) -> Array:
        plane, inverse_depth = self.view.project(mesh.vertices)
        pixels = self.window.pixels(plane, self.height, self.width)
        return rasterise(pixels, inverse_depth, mesh.faces, mesh.edges, self.height, self.width).inverse_depth

    def hides(self, mesh: Mesh) -> npt.NDArray[np.bool_]:
        """Return (h, w) where `mesh` is before the person."""
        return np.asarray(self.person & (self._depth(mesh) > self.depth))

    def share(self, hidden: npt.NDArray[np.bool_]) -> float:
        """Return the share of the person that is not hidden."""
        return float(1 - hidden.sum() / max(int(self.person.sum()), 1))

    def visible_extent(self) -> Extent | None:
        """Return box around the visible part of the person; None if all of it is hidden."""
        rows, columns = np.nonzero(self.person & ~self.hidden)
        if len(rows) == 0:
            return None
        x, y = self.window.width / self.width, self.window.height / self.height
        return Extent(
            self.window.left + float(columns.min()) * x,
            self.window.top + float(rows.min()) * y,
            self.window.left + float(columns.max() + 1) * x,
            self.window.top + float(rows.max() + 1) * y,
        )

    def seen_in(self, window: Window) -> tuple[float, float]:
        """Return (visible share, share outside) inside `window`."""
        x = self.window.left + (np.arange(self.width) + 0.5) * self.window.width / self.width
        y = self.window.top + (np.arange(self.height) + 0.5) * self.window.height / self.height
        across = (x >= window.left) & (x <= window.left + window.width)
        down = (y >= window.top) & (y <= window.top + window.height)
        inside = down[:, None] & across[None, :]
        total = max(int(self.person.sum()), 1)
        seen = int((self.person & ~self.hidden & inside).sum()) / total
        return seen, 1 - int((self.person & inside).sum()) / total

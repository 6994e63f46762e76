"""Two images and what every part contributes to their distance: as a page, or as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline.datasets.images import read_image, resize
from pipeline.evaluation.explain import TERMS, PairExplanation, explain_pair
from pipeline.evaluation.report.collect import entry_fields, explained_hits
from pipeline.evaluation.report.images import ImageStore
from pipeline.evaluation.report.model import Query, Report, TestSet
from pipeline.formats.features import Features
from pipeline.matching.distance import MatchingRule
from pipeline.parts import SEMANTIC
from pipeline.runtime.files import atomic_write
from pipeline.version import __version__

HEIGHT = 256
"""Pixels that an image in a figure is high."""


def pair_report(
    paths: Sequence[Path], images: Features, rule: MatchingRule, masks: npt.NDArray[np.uint8] | None
) -> Report:
    """Build a page of two image files from their features and part masks (2, 4, h, w); None: no heat maps."""
    store = ImageStore(None if masks is None else lambda new: masks[[list(paths).index(path) for path in new]])
    first, second = images.select(slice(0, 1)), images.select(slice(1, 2))
    places = store.add(paths)
    (hit,) = explained_hits(first, second, rule)
    hit = replace(hit, name=paths[1].name, image=places[1])
    query = replace(Query(**entry_fields(first, 0)), name=paths[0].name, image=places[0], hits=[hit])
    return Report(
        title=f"{paths[0].name} and {paths[1].name}: distance {hit.distance:.3f}",
        version=__version__,
        tables=[explain_pair(first, second, rule).table()],
        facts=[("rule", rule.name), ("metric", rule.metric), ("visibility", rule.visibility)],
        tests=[TestSet("pair", 1, [], [], [query])],
        parts=TERMS,
        mask_parts=SEMANTIC if store.masks else (),
        mask_size=store.mask_size,
        images=store.images,
        masks=store.masks,
    )


def draw_pair(path: Path, paths: Sequence[Path], pair: PairExplanation, masks: npt.NDArray[np.uint8] | None) -> None:
    """Draw a pair as a PNG: both images, their part masks, and the contribution of each part to the distance.

    Raises:
        ImageError: An image cannot be read.
    """
    columns = 1 if masks is None else 1 + len(SEMANTIC)
    figure = Figure(figsize=(1.6 * columns + 4.2, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6 * columns, 4.2), squeeze=False)[0]
    panels = left.subplots(2, columns, squeeze=False)
    for row, image_path in enumerate(paths):
        pixels = read_image(image_path)
        # All panels draw it; what a camera recorded in full is needlessly large for that.
        pixels = resize(pixels, HEIGHT, max(round(HEIGHT * pixels.shape[1] / pixels.shape[0]), 1))
        extent = (0, pixels.shape[1], HEIGHT, 0)
        for column, axes in enumerate(panels[row]):
            axes.imshow(pixels, extent=extent)
            axes.set_axis_off()
            if column:
                assert masks is not None
                # Inferno is readable without colour vision.
                heat = masks[row, column - 1] / 255
                axes.imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1, extent=extent)
            axes.set_title(SEMANTIC[column - 1] if column else image_path.name[-18:], fontsize=8)
    axes = right.subplots()
    names = [part.name for part in pair.parts]
    values = [part.weight * (part.distance or 0) for part in pair.parts]
    bars = axes.barh(range(len(names)), values, color=["#0072b2" if part.weight else "#bbbbbb" for part in pair.parts])
    labels = [f"{value:.3f}" if part.weight else "not compared" for part, value in zip(pair.parts, values, strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(f"distance {pair.distance:.3f} = sum of weight × distance (rule {pair.rule})", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")

"""The curves of a training run as one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.parts import PARTS
from pipeline.runtime.files import atomic_write
from pipeline.training.metrics_log import read_metrics

_LOSSES = ("loss", "triplet", "masks", "identity", "global_feature", "mask_teacher", "occluded_copies")


def draw_curves(metrics: Path, out: Path) -> None:
    """Draw losses, learning rate, part-visibility accuracy and evaluations over the epochs as a PNG."""
    lines = list(read_metrics(metrics))
    epochs = [line for line in lines if line["kind"] == "epoch"]
    tests = [line for line in lines if line["kind"] == "evaluation"]
    # The object, not pyplot: pyplot keeps figures alive in a global list and picks a window system.
    figure = Figure(figsize=(11, 7))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.07, top=0.95, wspace=0.14, hspace=0.28)
    losses, rate, visibility, accuracy = figure.subplots(2, 2).flat
    for name in _LOSSES:
        if any(line.get(name) for line in epochs):
            _plot(losses, epochs, name)
    losses.set(title="losses, mean over an epoch", yscale="log")
    steps = [line for line in lines if line["kind"] == "step"]
    last = max((line["step"] for line in steps), default=1)
    # Step by step: the end of an epoch shows neither the warm-up nor how a cosine falls.
    per_epoch = last / max((line["epoch"] for line in epochs), default=1)
    rate.plot([line["step"] / per_epoch for line in steps], [line["lr"] for line in steps])
    rate.set(title="learning rate", ylim=(0, None))
    known = {part for line in epochs for part in line.get("visibility_accuracy", {})}
    for part in (part for part in PARTS if part in known):
        visibility.plot(
            [line["epoch"] for line in epochs],
            [line.get("visibility_accuracy", {}).get(part) for line in epochs],
            label=part,
        )
    visibility.set(title="part visibility, agreement with the masks", ylim=(None, 1.0))
    for name in ("rank1", "mAP") if tests else ():
        _plot(accuracy, tests, name, marker="o")
    accuracy.set(title="first test set")
    for axes in (losses, rate, visibility, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    _explain_if_empty(visibility, "no masks, or a network without parts")
    _explain_if_empty(accuracy, "not tested in training (train.eval_every)")
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=110)


def _plot(axes: Axes, lines: list[dict[str, Any]], name: str, marker: str | None = None) -> None:
    values = np.array([line.get(name) for line in lines], np.float64)  # None is NaN, a gap
    axes.plot([line["epoch"] for line in lines], values, label=name, marker=marker)


def _explain_if_empty(axes: Axes, why: str) -> None:
    if not axes.lines:
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color="0.4")
        axes.set(xticks=[], yticks=[])

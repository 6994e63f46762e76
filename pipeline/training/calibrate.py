"""Visibility thresholds and part centres from training images whose masks show what is visible.

The paper leaves tau of eq. 5 open. Here training images are embedded unmodified and once more with cut-outs pasted
onto them or truncated, and tau_i is the threshold of the predicted mask's mean with the best balanced accuracy in
predicting whether the true mask shows part i. How well any threshold can do is the area under the ROC curve, which is
kept with the checkpoint.
The centre of a part is the mean of its feature over the unmodified images that show it (`pipeline.model.sgsfa`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from pipeline.config import ModelConfig, Precision, TrainConfig
from pipeline.model.embed import embed
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.output import NetworkOutput
from pipeline.model.sgsfa import SGSFA
from pipeline.model.visibility import visible_parts
from pipeline.parts import NUM_PARTS, PARTS
from pipeline.runtime.device import autocast
from pipeline.runtime.progress import SILENT, Progress
from pipeline.runtime.seeds import generator
from pipeline.training.augment import AugmentParams, augment, draw_params
from pipeline.training.occluders import occluder_tiles
from pipeline.training.prefetch import Prefetcher

MOST_IMAGES = 2048
"""Thresholds need no more; they are spread evenly over the training set."""

LEAST_AUC = 0.8
"""Below this area under the ROC curve, matching by visibility is hardly better than without."""

OCCLUDED = TrainConfig(flip=0, pad=0, occlude=0.8, occlude_people=0.4, truncate=0.3, erase=0, colour_jitter=0)
"""Augmentation of the images that thresholds are found on."""

NEVER = 1.0
"""Threshold of a part that no true mask shows (a label set without shoes): no mean exceeds it."""

_MISSED = 0.03
"""Share of images that a threshold may miss where no image hides the part."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds and how well visibility is predicted.

    Attributes:
        thresholds: tau for each of the seven parts.
        accuracy: Balanced accuracy of `visibility > tau` on occluded images by part; without parts that no true mask
            shows, and empty without masks.
        auc: Area under the ROC curve of visibility, by part; without parts that are always or never visible.
        images: Images that were used.
    """

    thresholds: tuple[float, ...]
    accuracy: dict[str, float]
    auc: dict[str, float]
    images: int

    @property
    def weak(self) -> dict[str, float]:
        """Parts whose visibility is predicted poorly, with their area under the curve."""
        return {part: area for part, area in self.auc.items() if area < LEAST_AUC}


UNCALIBRATED = Calibration((0.0,) * NUM_PARTS, {}, {}, 0)
"""Of a network without parts, or data without masks: every part counts as visible."""


def calibrate(
    model: nn.Module,
    prefetcher: Prefetcher,
    targets: MaskTargets,
    config: ModelConfig,
    *,
    batch: int,
    device: torch.device,
    amp: Precision = "off",
    progress: Progress = SILENT,
    pause: Callable[[], None] = lambda: None,
) -> Calibration:
    """Calibrate on training images: return thresholds, and set the network's centres.

    Args:
        model: The trained network, in evaluation mode on `device`.
        prefetcher: Its training images.
        targets: Their masks.
        config: The network's configuration.
        batch: Images per batch.
        device: Where the network is.
        amp: Precision of the forward pass.
        progress: Where to report.
        pause: Called before each batch; an exception of it ends the calibration.
    """
    if not isinstance(model, SGSFA):
        return UNCALIBRATED
    masked = bool(targets.has_mask.any())
    usable = (targets.has_mask if masked else torch.ones_like(targets.has_mask)).nonzero()[:, 0].cpu()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(len(usable), MOST_IMAGES)).round().long()]
    predicted, true = [], []
    centres = _Means(device)
    model.reset_centres()
    pieces = [chosen[start : start + batch].numpy() for start in range(0, len(chosen), batch)]
    with progress.task("calibrate", total=len(chosen)) as task:
        for rows, images in prefetcher.batches(pieces, lambda rows: rows):
            pause()
            found = embed(model, images, amp=amp)
            shown = torch.ones_like(found.visibility, dtype=torch.bool)
            if masked:
                place = torch.from_numpy(rows).to(targets.parts.device)
                parts, body = targets.parts[place].to(device), targets.body[place].to(device)
                shown = visible_parts(parts.float() / 255, config)
                hidden, left = _occluded(images, parts, body, seed=int(rows[0]))
                with torch.inference_mode(), autocast(device, amp):
                    output: NetworkOutput = model(hidden)
                predicted += [found.visibility, output.visibility.float()]
                true += [shown, visible_parts(left, config)]
            # What the network takes for empty is zero, whatever the masks show.
            centres.add(found.parts, found.global_feature, shown & found.parts.any(2))
            task.advance(len(rows))
    model.set_centres(*centres.result())
    return from_samples(torch.cat(predicted), torch.cat(true)) if masked else UNCALIBRATED


def _occluded(images: Tensor, parts: Tensor, body: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Images with cut-outs in front or truncated, normalised, and what is left of their part masks."""
    tiles = occluder_tiles().to(images.device)
    stream = generator(0, "calibrate", seed)
    params = draw_params(stream, len(images), images.shape[1], images.shape[2], OCCLUDED, tiles=len(tiles))
    on_device = AugmentParams.unpacked(params.packed().to(images.device), params.used)
    hidden, left, _ = augment(images, parts, body, on_device, tiles)
    return hidden, left


class _Means:
    """Means of part features over the images that show the part, and of global features, in double precision."""

    def __init__(self, device: torch.device) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64
        self._parts = self._global = torch.zeros((), dtype=kind, device=device)
        self._shown = self._images = torch.zeros((), dtype=kind, device=device)

    def add(self, parts: Tensor, global_feature: Tensor, shown: Tensor) -> None:
        """Count a batch: parts (B, 7, D), global (B, W), shown (B, 7) bool."""
        kind = self._parts.dtype
        self._parts = self._parts + (parts.to(kind) * shown[..., None]).sum(0)
        self._global = self._global + global_feature.to(kind).sum(0)
        self._shown = self._shown + shown.to(kind).sum(0)
        self._images = self._images + len(global_feature)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return (7, D) and (W,); zero for a part that no image shows."""
        return self._parts / self._shown.clamp_min(1)[:, None], self._global / self._images


def from_samples(predicted: Tensor, true: Tensor) -> Calibration:
    """Find thresholds from mask means (N, 7) and what the true masks show (N, 7) bool, and rate them."""
    means, shown = predicted.float().cpu().numpy(), true.cpu().numpy()
    thresholds: list[float] = []
    accuracy: dict[str, float] = {}
    auc: dict[str, float] = {}
    for i, part in enumerate(PARTS):
        threshold, balanced = best_threshold(means[:, i], shown[:, i])
        thresholds.append(threshold)
        if shown[:, i].any():
            accuracy[part] = balanced
        if 0 < shown[:, i].sum() < len(shown):
            auc[part] = roc_auc(means[:, i], shown[:, i])
    return Calibration(tuple(thresholds), accuracy, auc, len(means))


def best_threshold(means: npt.NDArray[np.float32], shown: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the threshold t that makes `mean > t` the best predictor of visibility, and its balanced accuracy.

    Args:
        means: (N,) predicted mask means.
        shown: (N,) whether the part is visible. If it never is, the threshold is `NEVER`; if it always is, a quantile
            of the means.
    """
    if not shown.any():
        return NEVER, 1.0
    if shown.all():
        threshold = float(np.nextafter(np.quantile(means, _MISSED).astype(np.float32), np.float32(0)))
        return threshold, float((means > threshold).mean())
    order = np.argsort(means, kind="stable")
    values, visible = means[order], shown[order]
    # Of a cut after each sample: hidden ones at or below it are right, and so are visible ones above it.
    right = np.cumsum(~visible) / (~visible).sum() + 1 - np.cumsum(visible) / visible.sum()
    # Equal means cannot be separated.
    right[:-1][values[:-1] == values[1:]] = -1
    best = int(right.argmax())
    upper = values[min(best + 1, len(values) - 1)]
    return float((values[best] + upper) / 2) if upper > values[best] else float(values[best]), float(right[best] / 2)


def roc_auc(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the share of pairs of a true and a false sample in the right order.

    Args:
        scores: (N,).
        labels: (N,) with samples of both kinds; ties count one half.
    """
    ranks = rankdata(scores)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))

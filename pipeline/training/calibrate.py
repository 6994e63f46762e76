"""Visibility thresholds and part centres from training images whose masks show what is visible.

The paper leaves tau of eq. 5 open. Here tau_i is the quantile of the predicted mask's mean that calls part i hidden in
2 % of the unmodified training images whose true mask shows it. The two kinds of error have different costs: the
feature of a hidden part adds noise, but a visible part that is left out of one gallery image makes the distances of a
query incomparable. Thresholds of the best balanced accuracy call 13 to 18 % of the visible parts hidden and cost 3.6
points of mAP with `part_features = "deep"` (docs/concepts/design-decisions.md).
The same images are embedded once more with cut-outs pasted onto them or truncated: how well any threshold can do is the
area under the ROC curve over both, which is kept with the checkpoint.
The centre of a part is the mean of its feature over the unmodified images that show it (`pipeline.model.sgsfa`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from pipeline.config import ModelConfig, TrainConfig
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.embed import embed
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.output import NetworkOutput
from pipeline.model.sgsfa import SGSFA
from pipeline.model.visibility import visible_parts
from pipeline.parts import NUM_PARTS, PARTS
from pipeline.runtime.device import autocast
from pipeline.runtime.seeds import generator
from pipeline.training.augment import AugmentParams, augment, draw_params, padding_probability
from pipeline.training.context import TrainContext
from pipeline.training.occluders import occluder_tiles

Pause = Callable[[], None]
"""Called before each batch; an exception that it raises ends the work."""

MOST_IMAGES = 2048
"""Thresholds need no more; they are spread evenly over the training set."""

LEAST_AUC = 0.8
"""Below this area under the ROC curve, matching by visibility is hardly better than without."""

OCCLUDED = TrainConfig(flip=0, pad=0, occlude=0.8, occlude_people=0.4, truncate=0.3, erase=0, colour_jitter=0)
"""Augmentation of the images that visibility is evaluated on."""

NEVER = 1.0
"""Threshold of a part that no true mask shows (a label set without shoes): no mean exceeds it."""

_FEWEST = 20
"""Fewest visible, and fewest hidden, samples of a part for which an area under the ROC curve is computed."""

_MISSED = 0.02
"""Share of the unmodified images showing a part that its threshold calls hidden."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds and how well visibility is predicted.

    Attributes:
        thresholds: tau for each of the seven parts.
        accuracy: Balanced accuracy of `visibility > tau` by part, on unmodified and occluded images; without parts that
            no true mask shows, and empty without masks.
        auc: Area under the ROC curve of visibility, by part; without parts that are visible or hidden in too few images
            (fewer than 20) for it to mean anything.
    """

    thresholds: tuple[float, ...]
    accuracy: dict[str, float]
    auc: dict[str, float]

    @property
    def weak(self) -> dict[str, float]:
        """Parts whose visibility is predicted poorly, with their area under the curve."""
        return {part: area for part, area in self.auc.items() if area < LEAST_AUC}

    def complete(self, meta: CheckpointMeta, epochs: int) -> CheckpointMeta:
        """Return the header of a checkpoint after so many epochs, with these thresholds."""
        return replace(meta, epochs=epochs, thresholds=self.thresholds, figures={"visibility_auc": self.auc})


UNCALIBRATED = Calibration((0.0,) * NUM_PARTS, {}, {})
"""Of a network without parts, or data without masks: every part counts as visible."""


def calibrate(network: nn.Module, context: TrainContext, pause: Pause = lambda: None) -> Calibration:
    """Calibrate a trained network on the training images: return thresholds, and set the centres of its features."""
    network.eval()
    if not isinstance(network, SGSFA):
        return UNCALIBRATED
    targets, device, amp = context.masks, context.device, context.config.amp
    masked = bool(targets.has_mask.any())
    usable = (targets.has_mask if masked else torch.ones_like(targets.has_mask)).nonzero()[:, 0].cpu()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(len(usable), MOST_IMAGES)).round().long()]
    plain: list[tuple[Tensor, Tensor]] = []
    occluded: list[tuple[Tensor, Tensor]] = []
    centres = _Means(device)
    network.reset_centres()
    batch = context.batch_size // context.config.accumulate
    pieces = [chosen[start : start + batch].numpy() for start in range(0, len(chosen), batch)]
    with context.progress.task("calibrate", total=len(chosen)) as task:
        for rows, images in context.images.batches(pieces, lambda rows: rows):
            pause()
            found = embed(network, images, amp=amp)
            shown = torch.ones_like(found.visibility, dtype=torch.bool)
            if masked:
                masks = targets.rows(torch.from_numpy(rows).to(device))
                shown = visible_parts(masks.parts.float() / 255, context.model)
                hidden, left = _occluded(images, masks, context.model, seed=int(rows[0]))
                with torch.inference_mode(), autocast(device, amp):
                    output: NetworkOutput = network(hidden)
                plain.append((found.visibility, shown))
                occluded.append((output.visibility.float(), visible_parts(left.parts, context.model)))
            # What the network takes for empty is zero, whatever the masks show.
            centres.add(found.parts, found.global_feature, shown & found.parts.any(2))
            task.advance(len(rows))
    network.set_centres(*centres.result())
    if not masked:
        return UNCALIBRATED
    predicted, true = (torch.cat(each) for each in zip(*plain, *occluded, strict=True))
    return from_samples(predicted, true, reference=len(chosen))


def _occluded(images: Tensor, masks: MaskTargets, model: ModelConfig, *, seed: int) -> tuple[Tensor, MaskTargets]:
    """Images with cut-outs in front or truncated, normalised, and what is left of their masks."""
    tiles = occluder_tiles().to(images.device)
    stream = generator(0, "calibrate", seed)
    size, padded = (images.shape[1], images.shape[2]), padding_probability(model)
    params = draw_params(stream, len(images), *size, OCCLUDED, tiles=len(tiles), padded=padded)
    return augment(images, masks, AugmentParams.unpacked(params.packed().to(images.device), params.used), tiles)


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


def from_samples(predicted: Tensor, true: Tensor, *, reference: int) -> Calibration:
    """Set thresholds and evaluate the predicted visibility.

    Args:
        predicted: (N, 7) mask means.
        true: (N, 7) bool, what the true masks show.
        reference: Thresholds are set on the first so many samples; all are evaluated.
    """
    means, shown = predicted.float().cpu().numpy(), true.cpu().numpy()
    thresholds: list[float] = []
    accuracy: dict[str, float] = {}
    auc: dict[str, float] = {}
    for i, part in enumerate(PARTS):
        thresholds.append(threshold_of(means[:reference, i], shown[:reference, i]))
        if shown[:, i].any():
            accuracy[part] = balanced_accuracy(means[:, i] > thresholds[-1], shown[:, i])
        if _FEWEST <= shown[:, i].sum() <= len(shown) - _FEWEST:
            auc[part] = roc_auc(means[:, i], shown[:, i])
    return Calibration(tuple(thresholds), accuracy, auc)


def threshold_of(means: npt.NDArray[np.float32], shown: npt.NDArray[np.bool_]) -> float:
    """Return the threshold that misses a share `_MISSED` of the images that show a part; `NEVER` if none does."""
    if not shown.any():
        return NEVER
    return float(np.nextafter(np.quantile(means[shown], _MISSED).astype(np.float32), np.float32(0)))


def balanced_accuracy(predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float:
    """Return the mean of the shares of true and of false samples that are predicted as such, of the kinds there are."""
    return float(np.mean([(predicted[true == kind] == kind).mean() for kind in np.unique(true)]))


def roc_auc(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of samples of both kinds.

    It is the share of pairs of a true and a false sample in the right order; ties count one half.
    """
    ranks = rankdata(scores)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))

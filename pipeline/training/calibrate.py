"""The visibility threshold and the centre of each part, from training images whose masks tell what they show.

The paper leaves tau of eq. 5 open. Here a part counts as visible unless the network sees less of it than in nearly all
images that show it: tau_i is the 3 % quantile of the predicted mask's mean over training images in which the true mask
shows part i. Patches of other images are pasted onto these images first, because masks of people who stand free, on
which the network was trained, are larger than any that an occluded query will have. The centre of a part is the mean of
its feature over the images, as they are, that show it; see `pipeline.model.network.SGSFA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, Precision, TrainConfig
from pipeline.model import spatial
from pipeline.model.embed import embed, look_at_normal
from pipeline.model.losses import shown_parts
from pipeline.model.network import SGSFA
from pipeline.parts import NUM_PARTS, PARTS
from pipeline.runtime.progress import SILENT, Progress
from pipeline.runtime.seeds import generator
from pipeline.training.augment import Draws, augment, draw
from pipeline.training.feeder import Feeder
from pipeline.training.store import Targets

MOST_IMAGES = 2048
"""A quantile needs no more; they are spread evenly over the training set."""

MISSED = 0.03
"""Share of the images that show a part in which it may be called hidden."""

PASTED = TrainConfig(flip=0, pad=0, occlude=1, erase=0, colour_jitter=0)
"""What is done to images before the network says what it sees of them."""

NEVER = 1.0
"""Threshold of a part that no true mask shows (a label set without shoes): no mean exceeds it."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds and how well they tell what is visible.

    Attributes:
        thresholds: tau for each of the seven parts.
        accuracy: Share of images, with patches pasted onto them, in which `visibility > tau` agrees with the masks, by
            part; without parts that no true mask shows, and empty without masks.
        images: Images that were used.
    """

    thresholds: tuple[float, ...]
    accuracy: dict[str, float]
    images: int


def calibrate(
    model: nn.Module,
    feeder: Feeder,
    targets: Targets,
    config: ModelConfig,
    *,
    batch: int,
    device: torch.device,
    amp: Precision = "off",
    progress: Progress = SILENT,
    pause: Callable[[], None] = lambda: None,
) -> Calibration:
    """Calibrate on training images.

    Thresholds are returned, and centres are set in the network. Without any masks every image counts as showing all
    parts, and thresholds are 0.

    Args:
        model: The trained network, in evaluation mode on `device`.
        feeder: Its training images.
        targets: Their masks.
        config: The network's configuration.
        batch: Images a forward.
        device: Where the network is.
        amp: Precision of the forward.
        progress: Where to report.
        pause: Called before each forward; an exception of it ends the calibration.
    """
    if not isinstance(model, SGSFA):
        return Calibration((0.0,) * NUM_PARTS, {}, 0)
    masked = bool(targets.has_mask.any())
    usable = (targets.has_mask if masked else torch.ones_like(targets.has_mask)).nonzero()[:, 0].cpu()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(len(usable), MOST_IMAGES)).round().long()]
    predicted, true, plain = [], [], []
    centres = _Means(device)
    model.uncentre()
    pieces = [chosen[start : start + batch].numpy() for start in range(0, len(chosen), batch)]
    with progress.task("calibrate", total=len(chosen)) as task:
        for rows, images in feeder.batches(pieces, lambda rows: rows):
            pause()
            found = embed(model, images, amp=amp)
            place = torch.from_numpy(rows).to(targets.parts.device)
            parts, body = targets.parts[place], targets.body[place]
            if masked:
                shown = true_visibility(parts.float() / 255, config).to(device)
                plain.append((found.visibility, shown))
                stream = generator(0, "calibrate", int(rows[0]))
                draws = draw(stream, len(rows), images.shape[1], images.shape[2], PASTED)
                there = Draws.unpacked(draws.packed().to(device), draws.used)
                hidden, left, _ = augment(images, parts.to(device), body.to(device), there)
                with torch.inference_mode():
                    predicted.append(look_at_normal(model, hidden, amp).visibility)
                true.append(true_visibility(left, config))
            else:
                shown = torch.ones_like(found.visibility, dtype=torch.bool)
            # What the network takes for empty is zero, whatever the masks show.
            centres.add(found.parts, found.global_feature, shown & found.parts.any(2))
            task.advance(len(rows))
    model.centre(*centres.result())
    if not masked:
        return Calibration((0.0,) * NUM_PARTS, {}, 0)
    result = from_samples(torch.cat(predicted), torch.cat(true))
    # A rare part may be covered by a patch in every image that shows it.
    as_they_are = from_samples(*(torch.cat(each) for each in zip(*plain, strict=True)))
    thresholds = tuple(
        other if mine == NEVER else mine for mine, other in zip(result.thresholds, as_they_are.thresholds, strict=True)
    )
    return replace(result, thresholds=thresholds)


class _Means:
    """Means of part features over the images that show the part, and of global features, in double precision."""

    def __init__(self, device: torch.device) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64
        self._parts = self._global = torch.zeros((), dtype=kind, device=device)
        self._shown = self._images = torch.zeros((), dtype=kind, device=device)

    def add(self, parts: Tensor, global_feature: Tensor, shown: Tensor) -> None:
        """Count a batch: parts (B, 7, D), whole (B, W), shown (B, 7) bool."""
        kind = self._parts.dtype
        self._parts = self._parts + (parts.to(kind) * shown[..., None]).sum(0)
        self._global = self._global + global_feature.to(kind).sum(0)
        self._shown = self._shown + shown.to(kind).sum(0)
        self._images = self._images + len(global_feature)

    def result(self) -> tuple[Tensor, Tensor]:
        """(7, D) and (W,); zero for a part that no image shows."""
        return self._parts / self._shown.clamp_min(1)[:, None], self._global / self._images


def from_samples(predicted: Tensor, true: Tensor) -> Calibration:
    """Thresholds and accuracy from mask means (N, 7) and what the true masks show (N, 7) bool."""
    predicted, true = predicted.float().cpu(), true.cpu()
    ever = true.any(0).tolist()
    thresholds = [_least(predicted[true[:, i], i]) if ever[i] else NEVER for i in range(NUM_PARTS)]
    agree = ((predicted > torch.tensor(thresholds)) == true).float().mean(0).tolist()
    accuracy = {part: share for part, share, seen in zip(PARTS, agree, ever, strict=True) if seen}
    return Calibration(tuple(thresholds), accuracy, len(predicted))


def _least(means: Tensor) -> float:
    # Just below, because many means can be equal where they were computed in bfloat16, and visible is what is above.
    return float(torch.nextafter(means.quantile(MISSED), torch.zeros(())))


def true_visibility(parts: Tensor, config: ModelConfig, *, training: bool = False) -> Tensor:
    """Which of the seven parts true masks show: the network's own rules, applied to the truth.

    Args:
        parts: (B, 4, h, w) true part masks in [0, 1].
        config: Rules of head row and strips.
        training: The rules of training mode, whose head row may be another than that of tests (`head_row_test`).

    Returns:
        (B, 7) bool in the order of `PARTS`.
    """
    _, strip_shown = spatial.find_strips(parts, config, testing=not training)
    everyone = torch.ones(len(parts), dtype=torch.bool, device=parts.device)
    return torch.cat([shown_parts(parts, everyone), strip_shown], 1)

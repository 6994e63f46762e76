"""The files that a training leaves, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Rejected
from pipeline.runtime.files import read_json

MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
REPORT_FILE = "training.json"
STATE_FOLDER = "state"


@dataclass(frozen=True)
class TrainReport:
    """What a training did.

    Attributes:
        images: Training images.
        identities: Identities among them.
        without_mask: Images that trained without L_se, because the mask file has no valid mask of them; 0 for the
            baseline, which needs none.
        failed: Images that could not be read and were left out.
        epochs: Epochs.
        steps: Optimiser steps.
        seconds: Time of the steps, over all runs of the training; without decoding and calibration.
        images_per_second: Images per second of that time.
        device: Name of the device.
        processes: Number of processes.
        thresholds: Calibrated visibility thresholds tau of the seven parts.
        visibility_accuracy: Balanced accuracy of `visibility > tau` by part, on unmodified and occluded images.
        visibility_auc: Area under its ROC curve, by part.
        best: Epoch and mAP of the best evaluation during training; None without evaluations.
        peak_memory_gb: Peak GPU memory that the allocator held; None on other devices.
    """

    images: int
    identities: int
    without_mask: int
    failed: tuple[Rejected, ...]
    epochs: int
    steps: int
    seconds: float
    images_per_second: float
    device: str
    processes: int
    thresholds: tuple[float, ...]
    visibility_accuracy: Mapping[str, float]
    visibility_auc: Mapping[str, float]
    best: tuple[int, float] | None
    peak_memory_gb: float | None


def finished_report(workdir: Path) -> TrainReport | None:
    """Return the report of a finished training; None while there is a state to resume, or nothing at all."""
    path = workdir / REPORT_FILE
    if (workdir / STATE_FOLDER).exists() or not path.is_file():
        return None
    values: dict[str, Any] = read_json(path)
    values["failed"] = tuple(Rejected(**each) for each in values["failed"])
    values["thresholds"] = tuple(values["thresholds"])
    values["best"] = None if values["best"] is None else tuple(values["best"])
    return TrainReport(**values)

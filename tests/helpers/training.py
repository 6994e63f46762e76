"""A data set small enough to train on in a test, and a network that keeps up with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.config import ModelConfig, TrainConfig
from pipeline.datasets.images import write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.formats.masks import PART_NAMES, absent_text, open_mask_writer
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import FAILED, OK

HEIGHT, WIDTH = 64, 32


def paint(pid: int, shot: int) -> np.ndarray:
    """A person of three coloured blocks on a noisy background; the colours tell who it is."""
    stream = np.random.default_rng([pid, shot])
    colours = np.random.default_rng([pid]).integers(30, 226, (3, 3))
    image = stream.integers(90, 140, (HEIGHT, WIDTH, 3))
    left = 6 + shot % 3
    for (top, bottom), colour in zip(((6, 16), (16, 38), (38, 60)), colours, strict=True):
        image[top:bottom, left : left + 18] = colour + stream.integers(-9, 10, (bottom - top, 18, 3))
    return image.clip(0, 255).astype(np.uint8)


def make_people(root: Path, *, train: int = 6, test: int = 4, shots: int = 3) -> Dataset:
    """`train` identities to train on, `test` others as query (camera 1) and gallery (camera 2)."""
    records = []
    for pid in range(1, train + test + 1):
        for shot in range(shots):
            split = "train" if pid <= train else ("query" if shot == 0 else "gallery")
            name = f"{split}/{pid:03d}_{shot}.png"
            write_image(root / name, paint(pid, shot))
            records.append(Record(name, pid, 1 if shot == 0 else 2, split))
    return Dataset("folder", "people", root, tuple(records))


def make_masks(
    path: Path, dataset: Dataset, *, failed: int = 0, absent: tuple[str, ...] = (), empty: tuple[str, ...] = ()
) -> Path:
    """True-looking masks of the training images; the first `failed` are marked as failed.

    The `absent` parts are empty because the parser does not provide them, the `empty` ones are although it could.
    """
    names = sorted(record.path for record in dataset.split("train"))
    parts = np.zeros((4, 16, 8), np.uint8)
    for i, (top, bottom) in enumerate(((1, 4), (4, 9), (9, 14), (14, 15))):
        parts[i, top:bottom, 2:6] = 0 if PART_NAMES[i] in (*absent, *empty) else 255
    body = np.zeros((64, 32), np.uint8)
    body[6:60, 7:25] = 0 if set(empty) == set(PART_NAMES) else 255
    count = len(names)
    status = np.full(count, OK, np.uint8)
    status[:failed] = FAILED
    good = status == OK
    columns = {
        "parts": np.where(good[:, None, None, None], parts, 0).astype(np.uint8),
        "body": np.where(good[:, None, None], body, 0).astype(np.uint8),
        "quality": good.astype(np.float32),
    }
    provenance = Provenance({"parser": "test", "absent_parts": absent_text(absent)})
    with open_mask_writer(path, names, provenance) as writer:
        writer.write(0, columns, status, dict.fromkeys(range(failed), "unreadable"))
        writer.finish()
    return path


def small_model(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": "none", "height": HEIGHT, "width": WIDTH, "part_dim": 8} | changes
    )


def small_training(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "epochs": 2,
            "epoch_length": "identities",
            "identities": 3,
            "instances": 2,
            "pad": 4,
            "occlude": 0.3,
            "colour_jitter": 0.1,
            "ema": 0.9,
            "clip_norm": 5.0,
            "schedule": "cosine",
            "warmup_epochs": 1,
            "device": "cpu",
        }
        | changes
    )

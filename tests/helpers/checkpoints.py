"""Small checkpoints of networks with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import ModelConfig
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.network import build_model

HEIGHT, WIDTH = 64, 32


def make_checkpoint(path: Path, **changes: object) -> Path:
    config = ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": "none", "height": HEIGHT, "width": WIDTH, "part_dim": 8} | changes
    )
    torch.manual_seed(0)
    model = build_model(config, 3)
    meta = CheckpointMeta(model=config, num_classes=3, thresholds=(0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1))
    save_checkpoint(path, model, meta)
    return path

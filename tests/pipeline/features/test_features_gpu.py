"""Features that a GPU computes are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config import ExtractConfig
from pipeline.datasets.images import write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.features.extract import extract_file
from pipeline.formats.features import Features
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.checkpoints import make_checkpoint

pytestmark = pytest.mark.gpu


def seasoned(checkpoint: Path) -> Path:
    """The same network with running statistics of some images; without any, its activations fade away."""
    model, meta = load_checkpoint(checkpoint)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    torch.manual_seed(1)
    with torch.no_grad():
        model.train()(torch.randn(32, 3, meta.model.height, meta.model.width))
    save_checkpoint(checkpoint, model, meta)
    return checkpoint


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_features_are_those_of_the_cpu(tmp_path: Path, amp: str) -> None:
    stream = np.random.default_rng(0)
    records = tuple(Record(f"images/{i:02d}.png", i, 0, "gallery") for i in range(11))
    for record in records:
        write_image(tmp_path / record.path, stream.integers(0, 256, (80, 40, 3), dtype=np.uint8))
    dataset = Dataset("folder", "few", tmp_path, records)
    checkpoint = seasoned(make_checkpoint(tmp_path / "model.safetensors"))
    reports = {}
    for device, precision in (("cpu", "off"), ("cuda", amp)):
        config = ExtractConfig.model_validate({"batch_size": 4, "device": device, "amp": precision})
        out = tmp_path / f"{device}.h5"
        reports[device] = extract_file(out, dataset=dataset, records=records, checkpoint=checkpoint, config=config)
    assert torch.cuda.get_device_name() in reports["cuda"].device
    one, two = (Features.load(tmp_path / f"{name}.h5") for name in ("cpu", "cuda"))
    for name in ("parts", "global_feature", "visibility"):
        wanted, got = getattr(one, name), getattr(two, name)
        # An untrained network amplifies rounding: bfloat16 differs by 0.2 on a CPU, TF32 less.
        assert np.linalg.norm(got - wanted) <= (0.06 if amp == "off" else 0.4) * np.linalg.norm(wanted), name

"""Named sizes of rendered data sets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.config import SynthConfig
from pipeline.config_file import preset_table

PRESETS: Mapping[str, SynthConfig] = MappingProxyType(
    {
        "tiny": SynthConfig(ids=6, cameras=2, shots=2, height=128, width=64),
        "demo": SynthConfig.model_validate(preset_table("demo")["synth"]),
        "benchmark": SynthConfig(ids=1000, cameras=8, shots=3),
        "transfer": SynthConfig(
            ids=1700,
            cameras=12,
            shots=1,
            occlusion=0.35,
            tone=0.8,
            train_share=0.95,
            randomise=("scene", "quality", "box", "clothes"),
        ),
    }
)
"""tiny: for tests, seconds. demo: the run preset's, two core minutes. benchmark: 24,000 images and distractors.
transfer: 20,400 images to train networks for real images, each of another camera."""

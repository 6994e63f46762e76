"""The re-identification network of this package."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config_file import load_config
from pipeline.datasets.records import UNKNOWN
from pipeline.features.embedder import embed
from pipeline.formats.checkpoint import BUILTIN, read_meta, resolve_checkpoint
from pipeline.model.weights import load_backbone_weights
from sgsfa_synth.presets import PRESETS
from sgsfa_synth.scene import SceneSettings, render


def test_builtin__is_small_and_matches_the_preset_that_continues_it() -> None:
    path = resolve_checkpoint(BUILTIN)
    assert path.stat().st_size <= 10e6
    meta = read_meta(path)
    assert meta.trained_on == "rendered identities"
    model = load_config(preset="finetune").model
    differing = {key for key, value in model if getattr(meta.model, key) != value}
    assert differing <= {"weights", "height", "width"}


def test_builtin__backbone_starts_a_network() -> None:
    weights = load_backbone_weights("rendered", "mobilenet_v2")
    assert weights is not None
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())


@pytest.mark.slow
def test_builtin__finds_rendered_identities_again() -> None:
    settings = SceneSettings.of(PRESETS["transfer"])
    shots = [render(7, person, camera, 0, settings=settings).image for camera in (0, 1) for person in range(0, 64, 8)]
    features = embed(shots)
    assert (features.pids == UNKNOWN).all()
    vectors = features.global_feature / np.linalg.norm(features.global_feature, axis=1, keepdims=True)
    nearest = (vectors[:8] @ vectors[8:].T).argmax(1)
    assert (nearest == np.arange(8)).mean() >= 0.5

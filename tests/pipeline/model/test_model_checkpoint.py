"""Networks to and from checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import WeightsError
from pipeline.formats.checkpoint import CheckpointMeta, read_checkpoint, write_checkpoint
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint, start_from
from pipeline.model.network import build_model

SMALL = ModelConfig(backbone="mobilenet_v2", height=64, width=32, part_dim=16)
META = CheckpointMeta(SMALL, 3, (0.1,) * 7, "rendered", identities="ab" * 32)
CLASSIFIER = "spatial_heads.0.classify.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.safetensors", build_model(SMALL, 3).to(memory_format=torch.channels_last), META)
    return tmp_path / "model.safetensors"


def test_load__network_computes_the_same(checkpoint: Path) -> None:
    torch.manual_seed(0)
    original = build_model(SMALL, 3).eval()
    network, meta = load_checkpoint(checkpoint)
    assert meta == META
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(network(images).matched, original(images).matched)


@pytest.mark.parametrize("change", [{"num_classes": 9}, {"model": SMALL.model_copy(update={"part_dim": 8})}])
def test_load__weights_of_another_shape_are_refused(
    checkpoint: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    weights, meta = read_checkpoint(checkpoint)
    write_checkpoint(tmp_path / "other.safetensors", weights, CheckpointMeta(**{**vars(meta), **change}))
    with pytest.raises(WeightsError, match="do not fit"):
        load_checkpoint(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("identities", "copied"), [("ab" * 32, True), ("cd" * 32, False), ("", False)])
def test_start_from__classifiers_are_copied_for_the_same_identities(
    checkpoint: Path, identities: str, copied: bool
) -> None:
    network = build_model(SMALL, 3)
    old = start_from(checkpoint, network, CheckpointMeta(SMALL, 3, (), "rendered", identities=identities))
    assert old == META
    before, after = read_checkpoint(checkpoint)[0], network.state_dict()
    assert torch.equal(before["local_attention.heads.weight"], after["local_attention.heads.weight"])
    assert torch.equal(before[CLASSIFIER], after[CLASSIFIER]) is copied


def test_start_from__another_network_is_named(checkpoint: Path) -> None:
    other = SMALL.model_copy(update={"part_dim": 8, "height": 128})
    with pytest.raises(WeightsError, match=r"model\.part_dim = 16 instead of 8") as caught:
        start_from(checkpoint, build_model(other, 3), CheckpointMeta(other, 3, ()))
    assert "height" not in caught.value.message

"""Weight files: round trips, and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.config import ModelConfig
from pipeline.errors import WeightsError
from pipeline.formats.checkpoint import CheckpointMeta, write_checkpoint
from pipeline.model import weights
from pipeline.model.network import build_model

SMALL = ModelConfig(backbone="mobilenet_v2", height=64, width=32, part_dim=16)


def test_backbone_weights_from_a_file_start_the_network(tmp_path: Path) -> None:
    source = torchvision.models.mobilenet_v2(weights=None)
    path = tmp_path / "mobilenet.pth"
    torch.save(source.state_dict(), path)
    start = weights.load_backbone_weights(str(path), "mobilenet_v2")
    assert start is not None
    network = build_model(SMALL, 3, backbone_weights=start)
    assert torch.equal(network.backbone.early[0][0].weight, source.features[0][0].weight)
    assert weights.load_backbone_weights("none", "mobilenet_v2") is None
    # Trainers of whole models write the backbone's entries under a name of theirs, beside others.
    for prefix in ("backbone.", "module.encoder_q."):
        larger = {f"{prefix}{key}": value for key, value in start.items()} | {"heads.weight": torch.ones(2)}
        again = build_model(SMALL, 3, backbone_weights=larger)
        assert torch.equal(again.backbone.last[-1][0].weight, source.features[18][0].weight)
    # ResNet's first name ends those of its later layers, too.
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    other = {key: torch.zeros_like(value) for key, value in resnet.items()}
    small = SMALL.model_copy(update={"backbone": "resnet18"})
    for files in (
        {"backbone.": resnet},
        {"module.encoder_k.": other, "module.encoder_q.": resnet},
    ):
        both = {prefix + key: value for prefix, state in files.items() for key, value in state.items()}
        found = build_model(small, 3, backbone_weights=both)
        assert torch.equal(found.backbone.early[0].weight, resnet["conv1.weight"])
    two = {prefix + key: value for prefix in ("a.", "b.") for key, value in resnet.items()}
    with pytest.raises(WeightsError, match=r"several networks of this kind: a\., b\."):
        build_model(small, 3, backbone_weights=two)
    with pytest.raises(WeightsError, match="not those of resnet18") as caught:
        build_model(ModelConfig(backbone="resnet18"), 3, backbone_weights={"stem.conv.weight": torch.ones(1)})
    assert "the file has stem.conv.weight" in (caught.value.hint or "")
    with pytest.raises(WeightsError, match="not those of resnet18"):
        build_model(ModelConfig(backbone="resnet18"), 3, backbone_weights=start)
    wrong = {key: value[..., :1] if key.endswith("0.0.weight") else value for key, value in start.items()}
    with pytest.raises(WeightsError, match="has shape"):
        build_model(SMALL, 3, backbone_weights=wrong)


def test_load_weights__deeper_network_of_the_family_is_refused() -> None:
    deeper = {f"backbone.{key}": value for key, value in torchvision.models.resnet34(weights=None).state_dict().items()}
    with pytest.raises(WeightsError, match=r"not those of resnet18: 'layer1\.2\.bn1\.bias' is not part of it"):
        build_model(SMALL.model_copy(update={"backbone": "resnet18"}), 3, backbone_weights=deeper)


def test_load_weights__missing_and_misshapen_entries_are_named() -> None:
    with pytest.raises(WeightsError, match=r"'bn1\.bias' is missing"):
        build_model(
            SMALL.model_copy(update={"backbone": "resnet18"}), 3, backbone_weights={"conv1.weight": torch.zeros(3, 3)}
        )


def test_load_weights__checkpoint_of_this_program_is_for_train_start() -> None:
    small = SMALL.model_copy(update={"backbone": "resnet18"})
    with pytest.raises(WeightsError, match="not those of resnet18") as caught:
        build_model(small, 3, backbone_weights=build_model(small, 3).state_dict())
    assert "train.start" in (caught.value.hint or "")


def test_without_internet_imagenet_names_the_file_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(WeightsError, match="cannot be downloaded") as caught:
        weights.load_backbone_weights("imagenet", "mobilenet_v2")
    assert "model.weights" in str(caught.value.hint)
    with pytest.raises(WeightsError, match="timm:resnet26d"):
        weights.load_backbone_weights("imagenet", "timm:resnet26d")


def test_the_packages_imagenet_weights_fill_a_whole_mobilenet() -> None:
    start = weights.load_backbone_weights("builtin", "mobilenet_v2")
    assert start is not None
    wanted = torchvision.models.mobilenet_v2(weights=None).features.state_dict()
    assert {key for key in wanted if not key.endswith("num_batches_tracked")} == {
        key.removeprefix("features.") for key in start
    }
    assert {value.dtype for value in start.values()} == {torch.float32}
    network = build_model(SMALL, 3, backbone_weights=start)
    assert torch.equal(network.backbone.last[-1][0].weight, start["features.18.0.weight"])
    with pytest.raises(WeightsError, match="no weights for resnet18"):
        weights.load_backbone_weights("builtin", "resnet18")


def test_imagenet_weights_are_packed_without_classifier_and_counters(tmp_path: Path) -> None:
    tool = pytest.importorskip("tools.imagenet", reason="run from the repository, where tools/ lies")
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None)
    packed = tool.packed(network.state_dict())
    safetensors.torch.save_file(packed, tmp_path / "a.safetensors")
    assert not any(key.startswith("classifier") or key.endswith("num_batches_tracked") for key in packed)
    again = weights.load_backbone_weights(str(tmp_path / "a.safetensors"), "mobilenet_v2")
    assert again is not None
    for key, value in network.features.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(again[f"features.{key}"].float(), value, atol=1e-4, rtol=1e-3)
    with pytest.raises(WeightsError, match="not those of mobilenet_v2"):
        tool.packed(torchvision.models.resnet18(weights=None).state_dict())


def test_rendered__is_the_backbone_of_the_builtin_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = build_model(SMALL, 2)
    path = tmp_path / "builtin.safetensors"
    write_checkpoint(path, trained.state_dict(), CheckpointMeta(model=SMALL, num_classes=2, thresholds=(0.1,) * 7))
    monkeypatch.setattr(weights, "resolve_checkpoint", lambda name: path)
    start = weights.load_backbone_weights("rendered", "mobilenet_v2")
    network = build_model(SMALL, 3, backbone_weights=start)
    for name, value in trained.backbone.state_dict().items():
        torch.testing.assert_close(network.backbone.state_dict()[name], value)
    with pytest.raises(WeightsError, match="resnet50"):
        weights.load_backbone_weights("rendered", "resnet50")

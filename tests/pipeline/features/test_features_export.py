"""ONNX models return the features of extraction, or are not written."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ExtractConfig, ModelConfig
from pipeline.errors import ArtifactError, ConfigError, FormatError, WeightsError
from pipeline.features import export as export_module
from pipeline.features.embedder import Embedder
from pipeline.features.export import METADATA, ExportOptions, export
from pipeline.formats.checkpoint import BUILTIN, CheckpointMeta, resolve_checkpoint
from pipeline.formats.features import Features
from pipeline.matching.distance import distance_matrix
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.network import build_model
from pipeline.model.normalise import normalise
from pipeline.model.sgsfa import SGSFA
from pipeline.parts import PARTS

HEIGHT, WIDTH = 64, 32


def checkpoint(path: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": "none", "height": HEIGHT, "width": WIDTH, "part_dim": 8} | changes
    )
    network = build_model(config, 4).eval()
    if isinstance(network, SGSFA):
        network.set_centres(
            torch.randn(7, 8) / 10, torch.randn(network(torch.zeros(1, 3, HEIGHT, WIDTH)).global_feature.shape[1]) / 10
        )
    save_checkpoint(path, network, CheckpointMeta(config, 4, (0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1), trained_on="toy"))
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("changes", "flip"),
    [
        ({"necks": True, "global_dim": 8, "strip_pooling": "body"}, True),
        ({}, False),
        ({"kind": "baseline", "global_dim": 0}, False),
        ({"necks": True, "global_dim": 8, "backbone": "timm:test_vit"}, False),
        ({"necks": True, "global_dim": 8, "backbone": "timm:swin_tiny_patch4_window7_224"}, False),
    ],
    ids=["strong", "paper", "baseline", "vit", "swin"],
)
def test_export__returns_what_extraction_writes(tmp_path: Path, changes: dict[str, Any], flip: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")
    pytest.importorskip("onnxscript", reason="an extra")
    if "backbone" in changes:
        pytest.importorskip("timm", reason="an extra")
    file, out = checkpoint(tmp_path / "m.safetensors", **changes), tmp_path / "made" / "m.onnx"
    report = export(out, file, ExportOptions(flip=flip))
    assert [path.name for path in out.parent.iterdir()] == ["m.onnx"], "one file, and nothing beside it"
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(report.outputs) == list(report.differences)
    assert all(difference < 1e-3 for difference in report.differences.values())
    network = Embedder.load(file, ExtractConfig(device="cpu", flip=flip))
    for count in (1, 4):
        images = np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
        parts, global_feature, visibility = network.forward(images).values()
        given = dict(zip(names, session.run(None, {"images": images}), strict=True))
        np.testing.assert_allclose(given["global_feature"], global_feature, rtol=1e-4, atol=1e-5)
        if "kind" in changes:
            assert names == ["global_feature"]
            continue
        np.testing.assert_allclose(given["parts"], parts, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(given["visibility"], visibility, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(given["visible"], visibility > np.float32(network.meta.thresholds))
    described = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert (described["height"], described["width"], described["flip"]) == (HEIGHT, WIDTH, flip)
    assert (described["parts"], described["fit"]) == (list(PARTS), "stretch")
    assert described["thresholds"] == pytest.approx([0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1])
    # The export leaves nothing in cached constants.
    assert np.isfinite(network.forward(images)["global_feature"]).all()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_export__a_model_with_other_outputs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="an extra")
    program = export_module._program

    def changed(model: Any, example: torch.Tensor) -> Any:
        for parameter in model.network.parameters():
            parameter.data.mul_(1.01)
        return program(model, example)

    monkeypatch.setattr(export_module, "_program", changed)
    file = checkpoint(tmp_path / "m.safetensors", kind="baseline", global_dim=0)
    with pytest.raises(WeightsError, match="`global_feature`"):
        export(tmp_path / "m.onnx", file)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_export__a_wrong_threshold_of_one_part_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="an extra")
    program = export_module._program

    def changed(model: Any, example: torch.Tensor) -> Any:
        model.thresholds[3] = 1.0
        return program(model, example)

    monkeypatch.setattr(export_module, "_program", changed)
    with pytest.raises(WeightsError, match="`visible`"):
        export(tmp_path / "m.onnx", checkpoint(tmp_path / "m.safetensors"))


def test_export__existing_files_are_not_overwritten(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="an extra")
    out = tmp_path / "m.onnx"
    out.write_text("mine")
    with pytest.raises(FormatError, match="exists"):
        export(out, tmp_path / "m.safetensors")
    assert out.read_text() == "mine"
    with pytest.raises(WeightsError):
        export(tmp_path / "other.onnx", tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match="folder"):
        export(tmp_path, tmp_path / "m.safetensors")


def test_export__missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="is not installed") as caught:
        export(tmp_path / "m.onnx", tmp_path / "m.safetensors")
    assert caught.value.hint == "pip install 'sgsfa[onnx]'"


def test_export__a_network_that_cannot_be_expressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="an extra")

    def failing(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("no such operator: aten::frobnicate\nmany lines")

    monkeypatch.setattr(torch.onnx, "export", failing)
    file = checkpoint(tmp_path / "m.safetensors", kind="baseline", global_dim=0)
    with pytest.raises(ConfigError, match="ONNX") as caught:
        export(tmp_path / "m.onnx", file)
    assert "aten::frobnicate" in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_export__single_vector_is_near_the_shared_part_distance(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")
    pytest.importorskip("onnxscript", reason="an extra")
    file = checkpoint(tmp_path / "m.safetensors", necks=True, global_dim=8)
    report = export(tmp_path / "m.onnx", file, ExportOptions(single_vector=True))
    assert (report.input, report.outputs) == ((3, HEIGHT, WIDTH), {"vector": (7 * 8 + 8,)})
    images = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {"images": normalise(torch.from_numpy(images)).contiguous().numpy()})
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    arrays = Embedder.load(file, ExtractConfig(device="cpu")).forward(images)
    features = Features.from_arrays(**arrays, thresholds=[0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1])
    # Where both images have the same visible parts, the two distances are equal.
    same = (features.visible[:, None] == features.visible[None]).all(axis=2)
    distances = distance_matrix(features, features)
    np.testing.assert_allclose((1 - vectors @ vectors.T)[same], distances[same], atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_export__fp16_of_a_trained_network(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")
    pytest.importorskip("onnxscript", reason="an extra")
    out = tmp_path / "m.onnx"
    report = export(out, options=ExportOptions(fp16=True))
    assert 0 < report.differences["visibility"] < export_module.HALF_TOLERANCE
    assert out.stat().st_size < 1.2 * resolve_checkpoint(BUILTIN).stat().st_size
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 128, 3), dtype=np.uint8)
    names = list(report.outputs)
    given = dict(zip(names, onnxruntime.InferenceSession(out).run(names, {"images": images}), strict=True))
    wanted = Embedder.load(config=ExtractConfig(device="cpu")).forward(images)
    for name, array in wanted.items():
        limit = export_module.HALF_TOLERANCE * np.abs(array).max()
        assert given[name].dtype == np.float32
        np.testing.assert_allclose(given[name], array, atol=limit)

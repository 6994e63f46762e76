"""The speed of a network in every runtime, with the differences of their features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import ExtractConfig
from pipeline.errors import ConfigError
from pipeline.features import bench as bench_module
from pipeline.features.bench import bench
from pipeline.runtime.device import has_native_bfloat16
from pipeline.runtime.progress import SILENT, Task
from tests.helpers.checkpoints import make_checkpoint

CONFIG = ExtractConfig(device="cpu", batch_size=4)


def test_bench__without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(*_arguments: object) -> None:
        raise ConfigError("onnx is not installed", hint="pip install 'sgsfa[onnx]'")

    monkeypatch.setattr(bench_module, "export", not_installed)
    report = bench(make_checkpoint(tmp_path / "m.safetensors"), CONFIG, seconds=0)
    float32, bfloat16 = report.timings
    assert (float32.runtime, bfloat16.runtime) == ("torch float32", "torch bfloat16")
    assert float32.difference == 0 < bfloat16.difference < 0.2
    assert min(float32.images_per_second, float32.latency_ms, bfloat16.images_per_second, bfloat16.latency_ms) > 0
    assert report.missing == ("ONNX Runtime: onnx is not installed (pip install 'sgsfa[onnx]')",)
    assert "64 x 32, batches of 4" in str(report)


def test_bench__baseline_without_part_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(*_arguments: object) -> None:
        raise ConfigError("onnx is not installed")

    monkeypatch.setattr(bench_module, "export", not_installed)
    totals: list[int | None] = []

    class RecordingProgress:
        def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
            totals.append(total)
            return SILENT.task(label, total=total, done=done, unit=unit)

    report = bench(
        make_checkpoint(tmp_path / "m.safetensors", kind="baseline"), CONFIG, seconds=0, progress=RecordingProgress()
    )
    float32, bfloat16 = report.timings
    assert float32.difference == 0 < bfloat16.difference < 0.2
    assert totals == [2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bench__onnx_runtime_agrees(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="an extra")
    pytest.importorskip("onnxscript", reason="an extra")
    report = bench(make_checkpoint(tmp_path / "m.safetensors"), CONFIG, seconds=0)
    assert [timing.runtime for timing in report.timings][2:] == ["ONNX Runtime float32 (CPU)"]
    assert report.timings[2].difference < 1e-3
    assert report.missing == ()


@pytest.mark.parametrize(("name", "native"), [("amx_bf16", True), ("avx2", False)])
def test_has_native_bfloat16(name: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    assert has_native_bfloat16() is native

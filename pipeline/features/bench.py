"""Speed of a network on this machine: PyTorch in float32 and bfloat16, and ONNX Runtime."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import ExtractConfig
from pipeline.errors import ConfigError
from pipeline.features.embedder import Embedder
from pipeline.features.export import ExportOptions, example_images, export
from pipeline.formats.checkpoint import BUILTIN, resolve_checkpoint
from pipeline.formats.table import Table, Tabular
from pipeline.runtime.device import device_label
from pipeline.runtime.progress import SILENT, Progress

Forward = Callable[[npt.NDArray[np.uint8]], Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Speed of one way to compute the features.

    Attributes:
        runtime: `torch float32`, `torch bfloat16` or `ONNX Runtime float32`, with its execution provider.
        images_per_second: In batches of `BenchReport.batch_size`, decoding excluded.
        latency_ms: Median time for one image, in milliseconds.
        difference: Largest difference of a feature or visibility from `torch float32`, as a share of the largest value
            of its kind.
    """

    runtime: str
    images_per_second: float
    latency_ms: float
    difference: float


@dataclass(frozen=True, slots=True)
class BenchReport(Tabular):
    """Speed of a network.

    Attributes:
        checkpoint: The network.
        backbone: Its backbone.
        size: Height and width of its input.
        device: Where PyTorch computed.
        batch_size: Images per batch.
        timings: One per runtime; the first is the reference of the differences.
        missing: Why a runtime was not measured.
    """

    checkpoint: str
    backbone: str
    size: tuple[int, int]
    device: str
    batch_size: int
    timings: tuple[Timing, ...]
    missing: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return one row per runtime."""
        rows = tuple(
            (timing.runtime, f"{timing.images_per_second:,.1f}", f"{timing.latency_ms:.1f}", f"{timing.difference:.1g}")
            for timing in self.timings
        )
        height, width = self.size
        title = f"{self.checkpoint}: {self.backbone}, {height} x {width}, batches of {self.batch_size}, {self.device}"
        return Table(("Runtime", "Images/s", "Latency (ms)", "Largest difference"), rows, title)


def bench(
    checkpoint: Path | str = BUILTIN,
    config: ExtractConfig | None = None,
    *,
    seconds: float = 3.0,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure the speed of a network on this machine.

    Args:
        checkpoint: A trained network: a file, or `builtin`.
        config: Device, batch size and flip averaging; None: the defaults.
        seconds: Time for each measurement; there are two per runtime.
        progress: Receives progress.

    Raises:
        WeightsError: The checkpoint is missing or damaged, or its export computes something else.
        DeviceError: The device is not available, or its memory is exhausted.
    """
    config = config or ExtractConfig()
    path = resolve_checkpoint(checkpoint)
    float32, bfloat16 = (
        Embedder.load(path, config.model_copy(update={"amp": amp, "visibility": "network"})) for amp in ("off", "bf16")
    )
    images = example_images(config.batch_size, float32.input_size).numpy()
    runtimes: dict[str, Forward] = {"torch float32": float32.forward, "torch bfloat16": bfloat16.forward}
    missing: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        try:
            runtimes |= _onnx_runtime(Path(folder) / "model.onnx", path, config.flip, float32.device)
        except ConfigError as error:
            missing = (f"ONNX Runtime: {error.message}" + (f" ({error.hint})" if error.hint else ""),)
        reference = float32.forward(images)
        timings = []
        with progress.task("bench", total=len(runtimes), unit="runtimes") as task:
            for runtime, forward in runtimes.items():
                difference = _largest_difference(forward(images), reference)
                images_per_second = len(images) / _median_seconds(forward, images, seconds)
                latency_ms = 1000 * _median_seconds(forward, images[:1], seconds)
                timings.append(Timing(runtime, images_per_second, latency_ms, difference))
                task.advance(1)
    return BenchReport(
        checkpoint=str(checkpoint),
        backbone=float32.meta.model.backbone,
        size=float32.input_size,
        device=device_label(float32.device),
        batch_size=config.batch_size,
        timings=tuple(timings),
        missing=missing,
    )


def _onnx_runtime(path: Path, checkpoint: Path, flip: bool, device: torch.device) -> dict[str, Forward]:
    outputs = [name for name in export(path, checkpoint, ExportOptions(flip=flip)).outputs if name != "visible"]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    on_gpu = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(
        path, options, providers=["CUDAExecutionProvider"] * on_gpu + ["CPUExecutionProvider"]
    )
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return {
        f"ONNX Runtime float32 ({provider})": lambda images: dict(
            zip(outputs, session.run(outputs, {"images": images}), strict=True)
        )
    }


def _largest_difference(outputs: Mapping[str, npt.NDArray[Any]], reference: Mapping[str, npt.NDArray[Any]]) -> float:
    """Return the largest difference of any output, relative to the output's largest value; 0 if all are zero."""
    differences = [0.0]
    for key, values in outputs.items():
        # A baseline has no part features, and its visibilities are zero.
        largest = float(np.abs(reference[key]).max(initial=0))
        if largest > 0:
            differences.append(float(np.abs(values - reference[key]).max()) / largest)
    return max(differences)


def _median_seconds(forward: Forward, images: npt.NDArray[np.uint8], seconds: float) -> float:
    """Return the median duration of a forward pass, over at least three after a warm-up."""
    forward(images)
    durations: list[float] = []
    while len(durations) < 3 or sum(durations) < seconds:
        start = time.perf_counter()
        forward(images)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)

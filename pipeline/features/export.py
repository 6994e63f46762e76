"""A checkpoint as an ONNX model: from uint8 images to features, compared with the network before it is kept."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, FormatError, WeightsError, first_line
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import embed
from pipeline.parts import PARTS
from pipeline.runtime.files import atomic_write, sha256_file
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.place import file_place

FORMAT = 1
METADATA = "sgsfa"
"""Entry of the model's metadata that says in JSON what it is."""

TOLERANCE = 1e-4
"""Largest difference from the network, as a share of the largest number; float32 sums in another order have 1e-6."""

_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class ExportReport:
    """An exported model.

    Attributes:
        path: The file.
        height: Height of the images in pixels.
        width: Width, likewise.
        outputs: Shape of each output for one image, by name.
        differences: Largest difference from the network over the images of the check, by output; for `visible` the
            share of parts that differ.
        images: How many images were compared, in batches of several sizes.
    """

    path: Path
    height: int
    width: int
    outputs: dict[str, tuple[int, ...]]
    differences: dict[str, float]
    images: int


def export(out: Path, checkpoint: Path, *, flip: bool = False, progress: Progress = SILENT) -> ExportReport:
    """Write a checkpoint as an ONNX model, if ONNX Runtime computes the same with it.

    The model takes `images`, (B, H, W, 3) uint8 RGB of the checkpoint's size, B at least 1, and normalises them itself.
    It gives `whole` (B, W) and, with parts, `parts` (B, 7, D), `visibility` (B, 7) in [0, 1] and `visible` (B, 7) bool,
    all features as `sgsfa extract` writes them.

    Args:
        out: The file to write.
        checkpoint: A checkpoint of `sgsfa train`.
        flip: Average over each image and its mirror image.
        progress: Where to report.

    Raises:
        WeightsError: The checkpoint is missing or damaged, or the exported model computes something else.
        FormatError: There is a file already, or none can be made there.
        ConfigError: The packages for it are not installed, or they cannot express the network.
        LockedError: Another process exports to `out`.
    """
    _require_packages()
    with file_place(out, "ONNX model", "model.onnx", progress):
        if out.exists():
            raise FormatError("there is a file already", where=out, hint="delete it or choose another name")
        network, meta = load_checkpoint(checkpoint)
        model = _Exported(network.eval(), meta, flip=flip).eval()
        batches = [_images(meta, count) for count in _BATCHES]
        # Before the export, which would leave its stand-ins for tensors where constants are kept.
        wanted = [model.as_arrays(batch) for batch in batches]
        program = _program(model, batches[1])
        program.model.metadata_props[METADATA] = json.dumps(_description(meta, checkpoint, flip=flip))
        with atomic_write(out) as temporary:
            program.save(str(temporary), external_data=False)
            differences = _compared(temporary, model.names, batches, wanted, meta.threshold_array())
    return ExportReport(
        path=out,
        height=meta.model.height,
        width=meta.model.width,
        outputs={name: value.shape[1:] for name, value in zip(model.names, wanted[0], strict=True)},
        differences=differences,
        images=sum(_BATCHES),
    )


class _Exported(nn.Module):
    """What the ONNX model computes.

    Attributes:
        names: Of its outputs.
        thresholds: (7,) tau of the parts.
    """

    names: tuple[str, ...]
    thresholds: Tensor

    def __init__(self, network: nn.Module, meta: CheckpointMeta, *, flip: bool) -> None:
        super().__init__()
        self.network, self.flip = network, flip
        self.names = (
            ("global_feature",)
            if meta.model.kind == "baseline"
            else ("parts", "global_feature", "visibility", "visible")
        )
        self.register_buffer("thresholds", torch.from_numpy(meta.threshold_array()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = embed(self.network, images, flip=self.flip)
        if len(self.names) == 1:
            return (found.global_feature,)
        return found.parts, found.global_feature, found.visibility, found.visibility > self.thresholds

    def as_arrays(self, images: Tensor) -> list[npt.NDArray[Any]]:
        """The outputs for a batch."""
        with torch.inference_mode():
            return [tensor.numpy() for tensor in self(images)]


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an ONNX model cannot be written: {error.name or first_line(error)} is not installed",
            hint="pip install 'sgsfa[onnx]'",
        ) from None


def _images(meta: CheckpointMeta, count: int) -> Tensor:
    """Images of blurred noise: like photographs they have large forms, in which masks find something."""
    stream = torch.Generator().manual_seed(count)
    coarse = torch.rand((count, 3, 8, 4), generator=stream)
    size = (meta.model.height, meta.model.width)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=stream)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _program(model: _Exported, example: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1)
    with _quiet(), torch.no_grad():
        try:
            return torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=list(model.names),
                dynamic_shapes={"images": {0: batch}},
                verbose=False,
            )
        # The exporter fails in as many ways as there are operations.
        except Exception as error:
            raise ConfigError(f"the network cannot be written as ONNX: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own future, at which a user can do nothing."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _description(meta: CheckpointMeta, checkpoint: Path, *, flip: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "checkpoint_sha256": sha256_file(checkpoint),
        "model": meta.model.kind,
        "backbone": meta.model.backbone,
        "height": meta.model.height,
        "width": meta.model.width,
        "flip": flip,
        "parts": list(PARTS),
        "thresholds": [float(each) for each in meta.thresholds],
        "trained_on": meta.trained_on,
        "version": meta.version,
    }


def _compared(
    path: Path,
    names: tuple[str, ...],
    batches: list[Tensor],
    wanted: list[list[npt.NDArray[Any]]],
    thresholds: npt.NDArray[np.float32],
) -> dict[str, float]:
    """How far ONNX Runtime's numbers are from the network's.

    Raises:
        WeightsError: Too far.
        ConfigError: ONNX Runtime cannot compute the model.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = [session.run(list(names), {"images": batch.numpy()}) for batch in batches]
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        raise ConfigError(
            f"ONNX Runtime {onnxruntime.__version__} cannot compute the exported model: {first_line(error)}",
            hint="another version of onnxruntime may; nothing was written",
        ) from error
    differences = dict.fromkeys(names, 0.0)
    for outputs, results in zip(wanted, given, strict=True):
        by_name = dict(zip(names, outputs, strict=True))
        for name, ours, theirs in zip(names, outputs, results, strict=True):
            if name == "visible":
                # Where a mean lies at its threshold, rounding decides.
                near = np.abs(by_name["visibility"] - thresholds) <= TOLERANCE
                difference, allowed = float(((ours != theirs) & ~near).mean()), 0.0
            elif name == "parts":
                # Each by itself, or a part with large numbers would hide another's errors.
                apart = np.abs(theirs - ours).max(axis=(0, 2), initial=0.0)
                scale = TOLERANCE * np.abs(ours).max(axis=(0, 2), initial=0.0)
                worst = int((apart - scale).argmax())
                difference, allowed = float(apart[worst]), float(scale[worst])
            else:
                difference = float(np.abs(theirs - ours).max(initial=0.0))
                allowed = TOLERANCE * float(np.abs(ours).max(initial=0.0))
            # Written so that NaN fails too.
            if ours.shape != theirs.shape or not difference <= allowed:
                raise WeightsError(
                    f"the exported model computes another `{name}`: {difference:.2g} away, more than {allowed:.2g}",
                    expected="the network's own numbers but for rounding; nothing was written",
                    hint="please report it with the versions of torch and onnxscript",
                )
            differences[name] = max(differences[name], difference)
    return differences

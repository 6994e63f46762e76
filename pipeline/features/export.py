"""Export a checkpoint as an ONNX model, which ONNX Runtime must compute as the network does before it is kept."""

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
from torch.nn import functional as F

from pipeline.errors import ConfigError, FormatError, WeightsError
from pipeline.formats.checkpoint import BUILTIN, CheckpointMeta, resolve_checkpoint
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import Embedded, embed
from pipeline.model.normalise import normalise
from pipeline.parts import PARTS
from pipeline.runtime.files import sha256_file
from pipeline.store.output import output

FORMAT = 1
METADATA = "sgsfa"
"""Entry of the model's metadata that describes it in JSON."""

TOLERANCE = 1e-4
"""Largest difference from the network, as a share of the largest value; other orders of float32 sums cause 1e-6."""

HALF_TOLERANCE = 0.1
"""The same for a model in float16. A part that an image hardly shows is a mean with small weights, whose rounding moves
single values of the built-in network's parts by 6 %."""

_BATCHES = (1, 2, 5)

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the model computes.

    Attributes:
        flip: Average over each image and its mirror image.
        single_vector: Take normalised (B, 3, H, W) float32 images and return one vector per image, as trackers expect.
        fp16: Compute in float16; inputs and outputs are unchanged.
    """

    flip: bool = False
    single_vector: bool = False
    fp16: bool = False


@dataclass(frozen=True, slots=True)
class ExportReport:
    """An exported model.

    Attributes:
        path: The file.
        input: Shape of the input for one image.
        outputs: Shape of each output for one image, by name.
        differences: Largest difference from the network over the images of the check, by output; for `visible` the
            share of parts that differ.
        images: Number of images compared, in batches of several sizes.
    """

    path: Path
    input: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    differences: dict[str, float]
    images: int


def export(out: Path, checkpoint: Path | str = BUILTIN, options: ExportOptions | None = None) -> ExportReport:
    """Write a checkpoint as an ONNX model, if ONNX Runtime computes the same with it.

    The model takes `images`, (B, H, W, 3) uint8 RGB of the checkpoint's size, and normalises them itself. It returns
    `global_feature` (B, W) and, with parts, `parts` (B, 7, D), `visibility` (B, 7) in [0, 1] and `visible` (B, 7) bool,
    as extraction does. With `single_vector` it takes (B, 3, H, W) float32, normalised by ImageNet's mean and standard
    deviation, and returns `vector` (B, 7 D + W) of length 1: the cosine similarity of two is close to that of the rule
    `shrunk`.

    Args:
        out: The file to write.
        checkpoint: A trained network: a file, or `builtin`.
        options: What the model computes.

    Raises:
        WeightsError: The checkpoint is missing or damaged, or the exported model computes something else.
        FormatError: The file exists.
        ConfigError: Packages are not installed, or cannot express the network.
        LockedError: Another process exports to `out`.
        ArtifactError: The file cannot be written.
    """
    options = options or ExportOptions()
    _require_packages()
    with output(out, "ONNX model") as partial:
        if out.exists():
            raise FormatError("the file exists", where=out, hint="delete it or choose another name")
        path = resolve_checkpoint(checkpoint)
        network, meta = load_checkpoint(path)
        model = _Exported(network.eval(), meta, options).eval()
        batches = [model.example(count) for count in _BATCHES]
        # Before the export, which leaves its stand-ins for tensors where constants are cached, and before rounding.
        wanted = [model.as_arrays(batch) for batch in batches]
        if options.fp16:
            model.network.half()
        program = _program(model, batches[1])
        program.model.metadata_props[METADATA] = json.dumps(_description(meta, path, options))
        try:
            program.save(str(partial), external_data=False)
            differences = _compare(partial, model, batches, wanted)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return ExportReport(
        path=out,
        input=tuple(batches[0].shape[1:]),
        outputs={name: value.shape[1:] for name, value in zip(model.names, wanted[0], strict=True)},
        differences=differences,
        images=sum(_BATCHES),
    )


class _Exported(nn.Module):
    """What the ONNX model computes; `names` are its outputs, `thresholds` (7,) the visibility thresholds."""

    names: tuple[str, ...]
    thresholds: Tensor

    def __init__(self, network: nn.Module, meta: CheckpointMeta, options: ExportOptions) -> None:
        super().__init__()
        self.network, self.options, self.size = network, options, (meta.model.height, meta.model.width)
        self.has_parts = meta.model.kind != "baseline"
        if options.single_vector:
            self.names = ("vector",)
        else:
            self.names = ("parts", "global_feature", "visibility", "visible") if self.has_parts else ("global_feature",)
        self.register_buffer("thresholds", torch.tensor(meta.thresholds, dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self._embed(images)
        visible = found.visibility > self.thresholds
        if self.options.single_vector:
            return (unit_vectors(found, visible) if self.has_parts else F.normalize(found.global_feature, dim=1),)
        if not self.has_parts:
            return (found.global_feature,)
        return found.parts, found.global_feature, found.visibility, visible

    def _embed(self, images: Tensor) -> Embedded:
        if not (self.options.single_vector or self.options.fp16):
            return embed(self.network, images, flip=self.options.flip)
        normal = images if self.options.single_vector else normalise(images)
        views = [normal, normal.flip(3)] if self.options.flip else [normal]
        half = next(self.network.parameters()).dtype == torch.float16
        outputs = [self.network(view.half() if half else view) for view in views]
        return Embedded(
            *(
                sum(getattr(each, name).float() for each in outputs) / len(views)
                for name in ("matched", "matched_global", "visibility")
            )
        )

    def example(self, count: int) -> Tensor:
        """Return input for `count` images."""
        images = example_images(count, self.size)
        return normalise(images).contiguous() if self.options.single_vector else images

    def as_arrays(self, images: Tensor) -> Arrays:
        """Return the outputs for a batch."""
        with torch.inference_mode():
            return [tensor.numpy() for tensor in self(images)]


def example_images(count: int, size: tuple[int, int]) -> Tensor:
    """Return (count, H, W, 3) uint8 images of blurred noise.

    Like photographs they have large forms, in which masks find parts.
    """
    stream = torch.Generator().manual_seed(count)
    coarse = torch.rand((count, 3, 8, 4), generator=stream)
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=stream)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an ONNX model cannot be written: {error.name} is not installed", hint="pip install 'sgsfa[onnx]'"
        ) from None


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
            raise ConfigError("the network cannot be written as ONNX", cause=error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own future."""
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


def _description(meta: CheckpointMeta, checkpoint: Path, options: ExportOptions) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "checkpoint_sha256": sha256_file(checkpoint),
        "model": meta.model.kind,
        "backbone": meta.model.backbone,
        "height": meta.model.height,
        "width": meta.model.width,
        "fit": meta.model.fit,
        "flip": options.flip,
        "fp16": options.fp16,
        "parts": list(PARTS),
        "thresholds": [float(each) for each in meta.thresholds],
        "trained_on": meta.trained_on,
        "version": meta.version,
    }


def _compare(path: Path, model: _Exported, batches: list[Tensor], wanted: list[Arrays]) -> dict[str, float]:
    """Return the largest difference of ONNX Runtime's outputs from the network's, by output.

    Raises:
        WeightsError: One is too large.
        ConfigError: ONNX Runtime cannot compute the model.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [session.run(list(model.names), {"images": batch.numpy()}) for batch in batches]
    # ONNX Runtime's exceptions have no common base.
    except Exception as error:
        raise ConfigError(
            f"ONNX Runtime {onnxruntime.__version__} cannot compute the exported model",
            hint="another version of onnxruntime may",
            cause=error,
        ) from error
    differences = dict.fromkeys(model.names, 0.0)
    tolerance = HALF_TOLERANCE if model.options.fp16 else TOLERANCE
    for ours, theirs in zip(wanted, found, strict=True):
        for name, one, other in zip(model.names, ours, theirs, strict=True):
            near = None
            if name == "visible":
                # A mean at its threshold is decided by rounding.
                near = np.abs(ours[model.names.index("visibility")] - model.thresholds.numpy()) <= tolerance
            difference, allowed = _difference(one, other, tolerance, near)
            # Written so that NaN fails too.
            if one.shape != other.shape or not difference <= allowed:
                raise WeightsError(
                    f"the exported model differs in `{name}` by {difference:.2g}",
                    expected=f"at most {allowed:.2g}; nothing was written",
                    hint="please report it with the versions of torch and onnxscript",
                )
            differences[name] = max(differences[name], difference)
    return differences


def _difference(
    ours: npt.NDArray[Any], theirs: npt.NDArray[Any], tolerance: float, undecided: npt.NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Return how far an output is from the network's, and how far it may be."""
    if undecided is not None:
        return float(((ours != theirs) & ~undecided).mean()), 0.0
    # Parts one by one, because one with large values would hide the errors of another.
    axes = (0, 2) if ours.ndim == 3 else None
    apart = np.atleast_1d(np.abs(theirs - ours).max(axis=axes, initial=0.0))
    allowed = np.atleast_1d(tolerance * np.abs(ours).max(axis=axes, initial=0.0))
    worst = int((apart - allowed).argmax())
    return float(apart[worst]), float(allowed[worst])


def unit_vectors(features: Embedded, visible: Tensor) -> Tensor:
    """Concatenate the visible parts and the global feature, each of length 1, and scale the whole to length 1.

    The product of two such vectors is the numerator of the rule `shrunk` (m = 1) over the root of the product of both
    images' numbers of visible features. Nearest neighbours agree where visibilities agree; no single vector has exactly
    the shared-part distance, because its divisor depends on the pair.

    Args:
        features: Of B images.
        visible: (B, 7) bool.

    Returns:
        (B, 7 D + W) float32.
    """
    parts = F.normalize(features.parts, dim=2) * visible.to(features.parts.dtype).unsqueeze(2)
    return F.normalize(torch.cat([parts.flatten(1), F.normalize(features.global_feature, dim=1)], 1), dim=1)

"""From images to features with the network of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pipeline.config import ExtractConfig
from pipeline.datasets.images import DecodedBatch, RgbImage, decode_batches, fitted, pillow_to_rgb, read_image
from pipeline.errors import ConfigError, DataError, ImageError, WeightsError
from pipeline.features.parser_visibility import THRESHOLD, ParserVisibility
from pipeline.formats.checkpoint import BUILTIN, CheckpointMeta, read_meta, resolve_checkpoint
from pipeline.formats.features import Features
from pipeline.formats.provenance import Provenance
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import embed as embed_batch
from pipeline.model.embed import predict_masks
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.files import sha256_file
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.process_group import RankInfo

_LOG = logging.getLogger("sgsfa.features")

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ImageInput = Path | str | Image.Image | RgbImage
"""A path, a PIL image, or a uint8 RGB array (H, W, 3)."""

Channels = Literal["rgb", "bgr"]

_LISTED = 5


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """Features of a batch of image files.

    Attributes:
        arrays: `parts` (B,7,D), `global_feature` (B,W) and `visibility` (B,7); zeros where an image failed.
        readable: (B,) bool.
        reasons: Why images failed, by position in the batch.
    """

    arrays: Mapping[str, Floats]
    readable: npt.NDArray[np.bool_]
    reasons: Mapping[int, str]


class Embedder:
    """The network of a checkpoint on a device, in evaluation mode.

    Attributes:
        meta: Header of the checkpoint.
        provenance: What decides the features of an image: checkpoint, flip, precision, source of visibility.
        device: Device of the network.
        part_dim: D; 0 for a model without part features.
        global_dim: W.
    """

    def __init__(self, model: nn.Module, checkpoint: Path, config: ExtractConfig, ranks: RankInfo) -> None:
        self.meta = read_meta(checkpoint)
        self.device = next(model.parameters()).device
        self.provenance = _provenance(checkpoint, self.meta, config)
        self._model, self._config = model, config
        by_parser = config.visibility == "parser" and self.meta.model.kind != "baseline"
        self._visibility = ParserVisibility(self.meta.model, self.device) if by_parser else None
        # The processes of a machine share its cores.
        self._threads = max(1, worker_count(-1) // ranks.local_world_size)
        probe = embed_batch(model, torch.zeros((1, *self.input_size, 3), dtype=torch.uint8, device=self.device))
        # The baseline fills its parts with zeros; a dimension of zero states in files that it has none.
        self.part_dim = 0 if self.meta.model.kind == "baseline" else probe.parts.shape[2]
        self.global_dim = probe.global_feature.shape[1]

    @classmethod
    def load(
        cls, checkpoint: Path | str = BUILTIN, config: ExtractConfig | None = None, ranks: RankInfo | None = None
    ) -> Self:
        """Read a checkpoint.

        Args:
            checkpoint: A trained network: a file, or `builtin`.
            config: Precision, flip averaging, device and batch size; None: the defaults.
            ranks: Place of this process among those of a run.

        Raises:
            WeightsError: The checkpoint is missing or damaged.
            DeviceError: The device does not exist or its memory is too small for the network.
        """
        config, ranks = config or ExtractConfig(), ranks or RankInfo()
        tune_allocator()
        device = ranks.select_device(config.device)
        path = resolve_checkpoint(checkpoint)
        model, meta = load_checkpoint(path)
        if str(checkpoint) == BUILTIN:
            _LOG.info("built-in network: %s, trained on %s", meta.model.backbone, meta.trained_on)
        with memory_advice("extract", config):
            return cls(model.to(device).to(memory_format=torch.channels_last), path, config, ranks)

    @property
    def thresholds(self) -> Floats:
        """(7,) thresholds above which a visibility counts as visible."""
        own = np.asarray(self.meta.thresholds, np.float32)
        return own if self._visibility is None else np.full_like(own, THRESHOLD)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return self.meta.model.height, self.meta.model.width

    def batches(self, paths: Sequence[Path]) -> Iterator[EmbeddedBatch]:
        """Embed image files in batches of `extract.batch_size`; the next batches are decoded meanwhile.

        An unreadable image takes part in its batch as a black one, so that neither it nor a resumed run changes the
        sums from which the features of other images are computed.

        Raises:
            WeightsError: The network returns features that are not finite.
        """
        for batch in self._decoded(paths):
            arrays = self.forward(batch.images)
            for array in arrays.values():
                array[list(batch.failed)] = 0
            yield EmbeddedBatch(arrays, batch.readable, batch.failed)

    def _decoded(self, paths: Sequence[Path]) -> Iterator[DecodedBatch]:
        return decode_batches(
            paths, *self.input_size, batch=self._config.batch_size, threads=self._threads, fit=self.meta.model.fit
        )

    def embed(self, images: Sequence[ImageInput], *, channels: Channels = "rgb") -> Features:
        """Embed images in memory.

        Args:
            images: Paths, PIL images or uint8 arrays of any size, also mixed.
            channels: Order of the channels of arrays; OpenCV's are `bgr`. It cannot be determined from the pixels.

        Returns:
            Features with paths as names (else `image-1`, ...), ids unknown, split `all`.

        Raises:
            DataError: No image is given, some cannot be read, or an array is not uint8 with three channels.
            ConfigError: `channels` has another value.
            WeightsError: The network returns features that are not finite.
            DeviceError: Memory is exhausted.
        """
        if channels not in get_args(Channels):
            raise ConfigError(f"unknown order of channels {channels!r}", expected=" | ".join(get_args(Channels)))
        if isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 4) < 4:
            raise DataError("a single image given", expected="a list of images")
        if not len(images):
            raise DataError("no images given", expected="at least one path, PIL image or uint8 RGB array")
        blocks: list[Mapping[str, Floats]] = []
        failed: list[ImageError] = []
        with ThreadPoolExecutor(self._threads) as pool, memory_advice("extract", self._config):
            for start in range(0, len(images), self._config.batch_size):
                positions = range(start, min(start + self._config.batch_size, len(images)))
                pixels = list(pool.map(lambda i: self._pixels(images[i], i, channels), positions))
                failed += [each for each in pixels if isinstance(each, ImageError)]
                if not failed:
                    blocks.append(self.forward(np.stack([each for each in pixels if not isinstance(each, ImageError)])))
        if failed:
            listed = "; ".join(f"{each.where}: {each.message}" for each in failed[:_LISTED])
            raise DataError(f"{len(failed)} of {len(images)} images cannot be read: {listed}")
        return Features.from_arrays(
            **{name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]},
            thresholds=self.thresholds,
            names=[str(each) if isinstance(each, str | Path) else f"image-{i}" for i, each in enumerate(images, 1)],
            provenance=self.provenance,
        )

    def forward(self, images: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed (B, H, W, 3) uint8 RGB images, fitted to the input: `parts`, `global_feature` and `visibility`.

        Raises:
            WeightsError: The network returns features that are not finite.
        """
        on_device = torch.from_numpy(images).to(self.device)
        found = embed_batch(self._model, on_device, flip=self._config.flip, amp=self._config.amp)
        arrays = {
            "parts": found.parts[:, :, : self.part_dim],
            "global_feature": found.global_feature,
            "visibility": found.visibility if self._visibility is None else self._visibility(on_device),
        }
        if not all(bool(torch.isfinite(each).all()) for each in arrays.values()):
            raise WeightsError(
                "the network returns features that are not finite numbers",
                hint="the training diverged; see its metrics.jsonl"
                + (", or set extract.amp=bf16" if self._config.amp == "fp16" else ""),
            )
        return {name: np.ascontiguousarray(each.cpu().numpy()) for name, each in arrays.items()}

    def part_masks(self, paths: Sequence[Path]) -> Bytes:
        """Predict the part masks of image files (N, 4, H/16, W/16): 255 where the network is certain of the part.

        They cover the image, without the padding of its frame. Those of an unreadable image are of a black one.

        Raises:
            WeightsError: The network is a baseline, which has no part masks.
        """
        found = []
        for batch in self._decoded(paths):
            masks = predict_masks(self._model, torch.from_numpy(batch.images).to(self.device)).cpu()
            found.append(_without_padding(masks, batch.areas).numpy())
        return np.concatenate(found)

    def _pixels(self, image: ImageInput, position: int, channels: Channels) -> RgbImage | ImageError:
        """Return an image at the input size, or why it cannot be used."""
        try:
            if isinstance(image, str | Path):
                return self._fitted(read_image(Path(image)))
            if isinstance(image, Image.Image):
                return self._fitted(pillow_to_rgb(image, Path(f"image-{position + 1}")))
        except ImageError as error:
            return error
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise DataError(
                f"image {position + 1} is an array of {array.dtype} and shape {array.shape}",
                expected="uint8 of shape (height, width, 3), RGB unless channels='bgr' is passed, as for OpenCV",
            )
        ordered = array if channels == "rgb" else array[..., ::-1]
        return self._fitted(np.ascontiguousarray(ordered))

    def _fitted(self, image: RgbImage) -> RgbImage:
        return fitted(image, *self.input_size, self.meta.model.fit)[0]


def _without_padding(masks: torch.Tensor, areas: npt.NDArray[np.float64]) -> torch.Tensor:
    """Stretch the area (N, 4) of each image in its mask (N, C, h, w) uint8 to the whole mask, bilinearly within it."""
    top, left, bottom, right = torch.from_numpy(areas).float().unbind(1)
    across = torch.stack([right - left, torch.zeros_like(left), left + right - 1], 1)
    down = torch.stack([torch.zeros_like(top), bottom - top, top + bottom - 1], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(masks.shape), align_corners=False)
    # Not beyond the centres of the first and last cells, so that no padding is mixed in.
    half = 1 / torch.tensor([masks.shape[3], masks.shape[2]])
    first, last = 2 * torch.stack([left, top], 1) - 1 + half, 2 * torch.stack([right, bottom], 1) - 1 - half
    grid = grid.clamp(first[:, None, None], last[:, None, None])
    sampled = F.grid_sample(masks.float(), grid, padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8)


def embed(
    images: Sequence[ImageInput], checkpoint: Path | str = BUILTIN, config: ExtractConfig | None = None
) -> Features:
    """Embed images in memory with the network of a checkpoint; see `Embedder.load` and `Embedder.embed`."""
    return Embedder.load(checkpoint, config).embed(images)


def _provenance(checkpoint: Path, meta: CheckpointMeta, config: ExtractConfig) -> Provenance:
    return Provenance(
        {
            "checkpoint_sha256": sha256_file(checkpoint),
            "model": meta.model.kind,
            "backbone": meta.model.backbone,
            "trained_on": meta.trained_on,
            "epochs": meta.epochs,
            "seed": meta.seed,
            "flip": config.flip,
            "amp": config.amp,
            "visibility": config.visibility,
        }
    )

"""Training images, decoded and resized once into a file that batches are read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.config import ModelConfig
from pipeline.datasets.images import PADDING, PERSON_RATIO, PERSON_RATIOS, decode_batches
from pipeline.datasets.records import Dataset
from pipeline.errors import ArtifactError, DataError, Rejected
from pipeline.runtime.files import is_no_space, reserve
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import Progress

Bytes = npt.NDArray[np.uint8]

_PARTIAL = ".h5.partial"
_NAME_BYTES = 4096
"""Bound of the bytes per image for its name or the reason of its rejection, and of the file's own structure."""

_BATCH = 256


@dataclass(frozen=True)
class ImageStore:
    """Images of one size in a uint8 array.

    Attributes:
        images: (N, H, W, 3) RGB, in memory or mapped from the cache file.
        names: (N) image names.
        rejected: Images that could not be read and have no row.
        areas: (N, 4) the `Area` of each image in its frame; None: every image fills its frame.
    """

    images: Bytes
    names: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()
    areas: npt.NDArray[np.float64] | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the images are held in memory; else batches are read from the file."""
        return not isinstance(self.images, np.memmap)


def cached_images(
    dataset: Dataset, names: Sequence[str], model: ModelConfig, *, cache: Path, progress: Progress
) -> Path:
    """Return an HDF5 file of images as a network sees them; write it if the folder `cache` has none of these images.

    Its name holds a hash of their size and fit, and of the names, file sizes and modification times of the images;
    other files of this kind in the folder are removed.

    Raises:
        DataError: No image can be read.
        ArtifactError: The file cannot be written.
    """
    path = cache / f"images-{_key(dataset, names, model)}.h5"
    if not path.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for stale in cache.glob("images-*.h5*"):
                stale.unlink()
            _decode_into(path, dataset, names, model, progress)
        except OSError as error:
            path.with_suffix(_PARTIAL).unlink(missing_ok=True)
            needed = len(names) * model.height * model.width * 3
            raise ArtifactError(
                f"cannot write the decoded images: {error.strerror or error}",
                where=path,
                hint=f"free {needed / 1e6:,.0f} MB of disk space" if is_no_space(error) else None,
            ) from error
    return path


def _key(dataset: Dataset, names: Sequence[str], model: ModelConfig) -> str:
    rule = f" {PERSON_RATIO} {PERSON_RATIOS} {PADDING}" if model.fit == "pad" else ""
    digest = hashlib.sha256(f"{model.height}x{model.width}{rule}".encode())
    for name in names:
        try:
            status = (dataset.root / name).stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            # The decoder reports it; the key has to change once the file can be read.
            state = "missing"
        digest.update(f"\n{name}\0{state}".encode())
    return digest.hexdigest()[:16]


def _decode_into(path: Path, dataset: Dataset, names: Sequence[str], model: ModelConfig, progress: Progress) -> None:
    height, width = model.height, model.width
    paths = [dataset.root / name for name in names]
    # Under a fixed name, so that the next run removes what a killed one has left.
    temporary = path.with_suffix(_PARTIAL)
    kept: list[int] = []
    rejected: list[Rejected] = []
    needed = len(names) * (height * width * 3 + _NAME_BYTES) + _NAME_BYTES
    reserve(temporary, needed)
    with (
        h5py.File(temporary, "w", libver="earliest", locking=False) as file,
        progress.task("decode", total=len(names)) as task,
    ):
        # HDF5 released the space when it opened the file, and truncates the file when it closes it.
        reserve(temporary, needed)
        rows = file.create_dataset("images", (len(names), height, width, 3), np.uint8)
        areas = file.create_dataset("areas", (len(names), 4), np.float64)
        for batch in decode_batches(paths, height, width, batch=_BATCH, threads=worker_count(-1), fit=model.fit):
            images, positions = batch.readable_images()
            if positions:
                rows[len(kept) : len(kept) + len(positions)] = images
                areas[len(kept) : len(kept) + len(positions)] = batch.areas[batch.readable]
            kept += positions
            rejected += [Rejected(names[batch.start + row], reason) for row, reason in batch.failed.items()]
            task.advance(len(batch.images))
        if not kept:
            raise DataError("no training image can be read", where=dataset.root, expected=rejected[0].reason)
        contents = {"names": [names[i] for i in kept], "rejected": [(r.path, r.reason) for r in rejected]}
        file["contents"] = np.frombuffer(json.dumps(contents).encode(), dtype=np.uint8)
    temporary.replace(path)


def open_images(path: Path, budget_gb: float) -> ImageStore:
    """Open a file of `cached_images`: read into memory up to a size of `budget_gb`, else mapped."""
    with h5py.File(path, "r", locking=False) as file:
        contents = json.loads(file["contents"][()].tobytes())
        count = len(contents["names"])
        rows = file["images"]
        shape = (count, *rows.shape[1:])
        images: Bytes
        if rows[:0].nbytes + int(np.prod(shape)) <= budget_gb * 1e9:
            images = rows[:count]
        else:
            # The array is contiguous and uncompressed, so that it can be mapped.
            images = np.memmap(path, np.uint8, mode="r", offset=rows.id.get_offset(), shape=shape)
        areas = file["areas"][:count]
    rejected = tuple(Rejected(*each) for each in contents["rejected"])
    return ImageStore(images, tuple(contents["names"]), rejected, areas)

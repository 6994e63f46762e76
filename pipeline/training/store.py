"""Training images, decoded and resized once, and their masks, row by row beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.datasets.images import decode_batches
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import ArtifactError, DataError, Rejected
from pipeline.formats.masks import OK, PART_NAMES, MaskFile
from pipeline.runtime.files import is_no_space, reserve, sha256_file
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import Progress

Bytes = npt.NDArray[np.uint8]

_PARTIAL = ".h5.partial"
_NOTES = 4096  # Bytes that an image's name, or why it was rejected, and the file's own structure take at most.
_BATCH = 256


@dataclass(frozen=True)
class ImageStore:
    """Images of one size in a uint8 array.

    Attributes:
        images: (N, H, W, 3) RGB, in memory or mapped from the cache file.
        names: (N) image names.
        rejected: Images that could not be read and have no row.
    """

    images: Bytes
    names: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether the images are held in memory; else they are read from the cache file batch by batch."""
        return not isinstance(self.images, np.memmap)


def cached_images(
    dataset: Dataset, names: Sequence[str], *, height: int, width: int, cache: Path, progress: Progress
) -> Path:
    """Decode and resize images into an HDF5 file, unless it is there.

    Args:
        dataset: Where the images lie.
        names: Which images, each once.
        height: Their new height in pixels.
        width: Their new width in pixels.
        cache: Folder of the file. The file's name holds a hash of the images' names and contents and of the size, so
            that a stale file is never taken; other files of this kind in the folder are removed.
        progress: Where to report.

    Raises:
        DataError: Not a single image can be read.
        ArtifactError: The file cannot be written.
    """
    path = cache / f"images-{_content_key(dataset.root, names, height, width)}.h5"
    if not path.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for stale in cache.glob("images-*.h5*"):
                stale.unlink()
            _decode_into(path, dataset, names, height, width, progress)
        except OSError as error:
            path.with_suffix(_PARTIAL).unlink(missing_ok=True)
            needed = len(names) * height * width * 3
            raise ArtifactError(
                f"the decoded images cannot be cached: {error.strerror or error}",
                where=path,
                hint=f"make room: they need {needed / 1e6:,.0f} MB" if is_no_space(error) else None,
            ) from error
    return path


def _content_key(root: Path, names: Sequence[str], height: int, width: int) -> str:
    digest = hashlib.sha256(f"{height}x{width}".encode())
    for name in names:
        path = root / name
        # An unreadable file is the decoder's to report; here it only has to change the key once it can be read.
        content = sha256_file(path) if path.is_file() else "missing"
        digest.update(f"\n{name}\0{content}".encode())
    return digest.hexdigest()[:16]


def _decode_into(
    path: Path, dataset: Dataset, names: Sequence[str], height: int, width: int, progress: Progress
) -> None:
    paths = [dataset.root / name for name in names]
    # A fixed temporary name: what a killed run leaves is removed by the next one.
    temporary = path.with_suffix(_PARTIAL)
    kept: list[int] = []
    rejected: list[Rejected] = []
    needed = len(names) * (height * width * 3 + _NOTES) + _NOTES
    reserve(temporary, needed)
    with h5py.File(temporary, "w", libver="earliest") as file, progress.task("decode", total=len(names)) as task:
        # HDF5 gave the space back when it opened the file, and cuts off what is too much when it closes it.
        reserve(temporary, needed)
        rows = file.create_dataset("images", (len(names), height, width, 3), np.uint8)
        for batch in decode_batches(paths, height, width, batch=_BATCH, threads=worker_count(-1)):
            if len(batch.index):
                rows[len(kept) : len(kept) + len(batch.index)] = batch.images
            kept += batch.index.tolist()
            rejected += [
                Rejected(names[position], failure.reason)
                for position, failure in zip(batch.failed_index.tolist(), batch.failed, strict=True)
            ]
            task.advance(len(batch.index) + len(batch.failed))
        if not kept:
            raise DataError("none of the training images can be read", where=dataset.root, expected=rejected[0].reason)
        contents = {"names": [names[i] for i in kept], "rejected": [(r.path, r.reason) for r in rejected]}
        file["contents"] = np.frombuffer(json.dumps(contents).encode(), dtype=np.uint8)
    temporary.replace(path)


def open_images(path: Path, budget_gb: float) -> ImageStore:
    """Open a file of `cached_images`.

    Args:
        path: The file.
        budget_gb: Up to this size the images are read into memory, above it mapped; the values are the same.
    """
    with h5py.File(path, "r") as file:
        contents = json.loads(file["contents"][()].tobytes())
        count = len(contents["names"])
        rows = file["images"]
        shape = (count, *rows.shape[1:])
        images: Bytes
        if rows[:0].nbytes + int(np.prod(shape)) <= budget_gb * 1e9:
            images = rows[:count]
        else:
            # Contiguous and uncompressed, so the array can be mapped as it lies in the file.
            images = np.memmap(path, np.uint8, mode="r", offset=rows.id.get_offset(), shape=shape)
    return ImageStore(images, tuple(contents["names"]), tuple(Rejected(*each) for each in contents["rejected"]))


@dataclass(frozen=True)
class Targets:
    """What the images of a store should teach, row by row beside it.

    Attributes:
        labels: (N,) int64 class of each image, 0..num_classes-1.
        parts: (N, 4, H/16, W/16) uint8 part masks, 255 for a cell full of the part.
        body: (N, 1, H/4, W/4) uint8 body mask.
        has_mask: (N,) bool.
        num_classes: Number of identities.
        given: (4,) bool, which parts the masks can tell of; the others are zero in every mask for want of knowledge.
    """

    labels: Tensor
    parts: Tensor
    body: Tensor
    has_mask: Tensor
    num_classes: int
    given: Tensor = field(default_factory=lambda: torch.ones(len(PART_NAMES), dtype=torch.bool))

    @property
    def without_mask(self) -> int:
        """Images that train without L_se."""
        return int((~self.has_mask).sum())

    def to(self, device: torch.device) -> Targets:
        """On a device."""
        return Targets(
            self.labels.to(device),
            self.parts.to(device),
            self.body.to(device),
            self.has_mask.to(device),
            self.num_classes,
            self.given.to(device),
        )


def load_targets(
    records: Mapping[str, Record],
    names: Sequence[str],
    masks: Path | None,
    *,
    height: int,
    width: int,
    stride: int = 16,
) -> Targets:
    """Identities and masks of the images in a store, found by name.

    Args:
        records: Training record of each image name.
        names: The store's images.
        masks: A mask file; None: nobody has a mask.
        height: Height of the network's input in pixels; masks of another size are averaged to its maps.
        width: Likewise.
        stride: Pixels per cell of part masks.

    Raises:
        FormatError: The mask file is damaged or of another kind.
        DataError: The mask file holds fewer than half of these images, tells of no part at all, or shows nobody.
    """
    pids = [records[name].pid for name in names]
    classes = {pid: label for label, pid in enumerate(sorted(set(pids)))}
    count = len(names)
    parts = np.zeros((count, 4, 16, 8), np.uint8)
    body = np.zeros((count, 1, 64, 32), np.uint8)
    has_mask = np.zeros(count, np.bool_)
    given = np.ones(len(PART_NAMES), np.bool_)
    if masks is not None:
        stored = MaskFile.open(masks).load()
        given = np.array([name not in stored.absent_parts for name in PART_NAMES])
        if not given.any():
            raise DataError(
                "the masks tell of no part of the body: the parser's labels have neither head nor upper or lower body "
                "nor shoes",
                where=masks,
                hint="take another parser (`sgsfa masks labels`), or train `baseline`, which needs no masks",
            )
        place = {name: i for i, name in enumerate(stored.names)}
        rows = np.array([place.get(name, -1) for name in names], dtype=np.int64)
        # Data sets may share some names by chance, and rendered ones do by rule; a file of ours holds every image.
        found = int((rows >= 0).sum())
        if 2 * found < count:
            raise DataError(
                f"the mask file holds {f'only {found}' if found else 'none'} of the {count} training images",
                where=masks,
                expected=f"masks of images such as {names[0]}",
                hint="it was built for another data set; build one with `sgsfa masks build`",
            )
        has_mask = (rows >= 0) & (stored.status[np.maximum(rows, 0)] == OK)
        taught = rows[has_mask]
        if has_mask.any() and not (stored.parts[taught].any() or stored.body[taught].any()):
            raise DataError(
                f"the masks show nobody: those of all {int(has_mask.sum()):,} training images are empty",
                where=masks,
                hint="label maps of 0 and 255, or a wrong label set, look like that; `sgsfa masks preview` draws them",
            )
        parts[has_mask] = stored.parts[taught]
        body[has_mask, 0] = stored.body[taught]
    return Targets(
        labels=torch.tensor([classes[pid] for pid in pids]),
        parts=_fit(torch.from_numpy(parts), height // stride, width // stride),
        body=_fit(torch.from_numpy(body), height // 4, width // 4),
        has_mask=torch.from_numpy(has_mask),
        num_classes=len(classes),
        given=torch.from_numpy(given),
    )


def _fit(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Masks are stored for 256 x 128 images; other inputs have other maps."""
    if masks.shape[2:] == (rows, columns):
        return masks
    resized = F.interpolate(masks.float(), size=(rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)

"""Finished label maps: a folder of PNGs or arrays whose pixels are label ids.

The folder mirrors the images' sub-folders. For an image `train/0002_c1.jpg` the first of these that exists is used:
`train/0002_c1.png`, `train/0002_c1.jpg.png`, the same two with `.npy`, `train/0002_c1.jpg.confidence_fields.npy`, and
then the same names without the sub-folder, if no other image has them. The case of suffixes and the Unicode normal
form of names do not matter. PNGs hold label ids as palette indices or grey values; `.npy` files hold ids (h, w), or
soft labels (C, h, w).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError, FormatError
from pipeline.parsing.labels import IGNORED, LabelSet
from pipeline.runtime.names import NameIndex

_INDEXED_MODES = frozenset({"P", "L", "1"})


class LabelMaps:
    """Label maps of a list of images (POSIX paths) below a folder; raises `ConfigError` if it does not exist."""

    def __init__(self, folder: Path, names: Sequence[str], label_set: LabelSet) -> None:
        if not folder.is_dir():
            raise ConfigError("the folder of label maps does not exist", where=folder)
        self.folder = folder
        self.label_set = label_set
        images = [PurePosixPath(name) for name in names]
        self._ambiguous = _shared(image.stem for image in images)
        self._twins = _shared(str(image.with_suffix("")) for image in images)
        self._index = NameIndex(folder)

    def find(self, name: str) -> Path:
        """Return the label map of an image.

        Raises:
            FormatError: None exists, or only one that could belong to another image as well.
        """
        image = PurePosixPath(name)
        for candidate in _candidates(image):
            path = self._existing(image.parent / candidate)
            if path is not None:
                if str(image.with_suffix("")) in self._twins and not candidate.startswith(f"{image.name}."):
                    continue  # `1.jpg` and `1.png` cannot both be meant by `1.png`
                return path
        for candidate in _candidates(image):
            path = self._existing(PurePosixPath(candidate))
            if path is not None:
                if image.stem in self._ambiguous:
                    raise FormatError(
                        f"several images are called {image.stem!r}, and the label maps are not in sub-folders",
                        where=path,
                        expected=str(self.folder / image.parent / candidate),
                    )
                return path
        raise FormatError("no label map", where=self.folder / image.with_suffix(".png"))

    def describe_missing(self, name: str) -> tuple[str, str]:
        """Return, for messages, the names that were tried for an image, and two names that exist where it was sought.

        The second text is empty if there are no files at all.
        """
        image = PurePosixPath(name)
        tried = ", ".join((image.parent / candidate).as_posix() for candidate in _candidates(image))
        return tried, ", ".join(self._index.examples(name))

    def read(self, name: str) -> Tensor:
        """Return the soft labels (1, C, h, w) float32 of an image; one-hot if the file holds ids.

        Raises:
            FormatError: There is no label map, or it does not fit this label set.
        """
        path = self.find(name)
        array = _read_array(path) if path.suffix.lower() == ".npy" else _read_png(path)
        if array.ndim == 3:
            return _soft(array, self.label_set, path)
        return _one_hot(array, self.label_set, path)

    def _existing(self, name: PurePosixPath) -> Path | None:
        found = self._index.find(name.as_posix())
        return self.folder / found if found is not None else None


def _shared(values: Iterable[str]) -> frozenset[str]:
    return frozenset(value for value, count in Counter(values).items() if count > 1)


def _candidates(image: PurePosixPath) -> tuple[str, ...]:
    return (
        f"{image.stem}.png",
        f"{image.name}.png",
        f"{image.stem}.npy",
        f"{image.name}.npy",
        f"{image.name}.confidence_fields.npy",
    )


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            mode = image.mode
            if mode in _INDEXED_MODES or mode.startswith("I;16"):
                return np.array(image)
            channels = np.asarray(image)
    # Pillow reports damage as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise FormatError(f"the label map cannot be read: {error}", where=path) from error
    if mode == "RGB" and (channels == channels[:, :, :1]).all():
        return channels[:, :, 0]
    raise FormatError(
        f"the label map is a colour image (mode {mode})",
        where=path,
        expected="label ids as palette indices or grey values",
        hint="coloured previews cannot be read back; have the parser save the ids",
    )


def _read_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            # Not numpy.load, which also opens archives.
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise FormatError(f"the label map cannot be read: {error}", where=path) from error
    if array.ndim not in (2, 3) or array.size == 0:
        raise FormatError(
            f"the array has shape {array.shape}", where=path, expected="(h, w) ids or (C, h, w) soft labels"
        )
    return array


def _one_hot(ids: np.ndarray, label_set: LabelSet, path: Path) -> Tensor:
    if label_set.kind == "fields" or ids.dtype.kind not in "uib":
        raise FormatError(
            f"the label map has one {ids.dtype} per pixel, which is not valid for {label_set.name}",
            where=path,
            expected="fields (C, h, w)" if label_set.kind == "fields" else "integers",
        )
    labels = ids.astype(np.int64)
    # What an ignored pixel shows is unknown, and a mask needs an answer: background.
    labels[labels == IGNORED] = 0
    if labels.min() < 0 or labels.max() >= label_set.count:
        raise FormatError(
            f"the label map holds the id {int(labels.max() if labels.min() >= 0 else labels.min())}",
            where=path,
            expected=f"0 to {label_set.count - 1} ({label_set.name}), or {IGNORED} for ignored pixels",
            hint="check masks.label_set",
        )
    return torch.nn.functional.one_hot(torch.from_numpy(labels), label_set.count).permute(2, 0, 1)[None].float()


def _soft(array: np.ndarray, label_set: LabelSet, path: Path) -> Tensor:
    if array.shape[0] != label_set.count or array.dtype.kind != "f":
        raise FormatError(
            f"the array has shape {array.shape} and type {array.dtype}",
            where=path,
            expected=f"({label_set.count}, h, w) floating-point numbers ({label_set.name})",
        )
    soft = torch.from_numpy(array.astype(np.float32))[None]
    if not bool(torch.isfinite(soft).all()) or float(soft.min()) < -1e-3 or float(soft.max()) > 1 + 1e-3:
        raise FormatError("the soft labels are outside [0, 1]", where=path)
    return soft.clamp_(0, 1)

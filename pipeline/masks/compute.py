"""A chunk of images in, rows of a mask file out: the part of a build that runs in workers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.images import WHOLE_AREA, decode_batches
from pipeline.errors import FormatError
from pipeline.formats.masks import BODY_SIZE, FAILED, OK, PARTS_SIZE
from pipeline.masks.occupancy import area_average, confidence, plausibility, quantise
from pipeline.parsing.labelmaps import LabelMaps
from pipeline.parsing.labels import Grouping, LabelSet, group_soft
from pipeline.parsing.parser import Parser, load_parser, parse_flipped
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.memory import out_of_memory

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive images that go through the parser together: the row of the first one, and their names."""

    start: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Consecutive rows of a mask file, as `RowWriter.write` takes them."""

    start: int
    columns: Mapping[str, NDArray[np.generic]]
    status: Bytes
    reasons: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the content of masks, besides the parser and the images.

    Attributes:
        grouping: Which labels each part consists of.
        flip: Average over the image and its mirror image.
        hard: Reduce each pixel to its most likely label before resizing.
    """

    grouping: Grouping
    flip: bool = False
    hard: bool = False


def parse_chunks(
    parser: Parser, chunks: Sequence[Chunk], *, root: Path, recipe: Recipe, threads: int
) -> Iterator[MaskRows]:
    """Decode, parse, group and resize chunks of one size, in `threads` decoding threads, while the next are decoded.

    A chunk always goes through the parser as a whole, unreadable images as black ones, so that neither a resumed
    build nor an unreadable image changes the sums from which any other mask is computed.

    Raises:
        FormatError: The parser returned something other than soft labels.
    """
    if not chunks:
        return
    size = len(chunks[0].names)
    paths = [root / name for chunk in chunks for name in chunk.names]
    decoded = decode_batches(paths, *parser.input_size, batch=size, threads=threads, fit=parser.info.fit)
    for chunk, batch in zip(chunks, decoded, strict=True):
        columns = _columns(_parse(parser, batch.images, recipe), parser.info.label_set, recipe, batch.areas)
        yield _rows(chunk.start, columns, batch.failed)


def fits(parser: Parser, count: int, recipe: Recipe) -> bool:
    """Whether the device has memory for `count` images per batch; tried with black ones."""
    images = np.zeros((count, *parser.input_size, 3), np.uint8)
    try:
        areas = np.tile(np.array(WHOLE_AREA), (count, 1))
        _columns(_parse(parser, images, recipe), parser.info.label_set, recipe, areas)
    # ONNX Runtime's exceptions have no common base.
    except Exception as error:
        if out_of_memory(error):
            return False
        raise
    return True


def parse_chunk(parser: Parser, root: Path, recipe: Recipe, chunk: Chunk) -> MaskRows:
    """Return the rows of one chunk; threads may share the parser."""
    return next(parse_chunks(parser, [chunk], root=root, recipe=recipe, threads=1))


def parse_in_worker(
    spec: str, label_set: str | None, device: str, root: Path, recipe: Recipe, chunk: Chunk
) -> MaskRows:
    """Return the rows of one chunk in a worker process, which loads its parser once."""
    return parse_chunk(_worker_parser(spec, label_set, device), root, recipe, chunk)


def read_label_maps(maps: LabelMaps, recipe: Recipe, chunk: Chunk) -> MaskRows:
    """Return the rows of one chunk from finished label maps."""
    areas = np.array([WHOLE_AREA])
    images, failed = [], {}
    for row, name in enumerate(chunk.names):
        try:
            soft = maps.read(name)
        except FormatError as error:
            failed[row] = error.message + (f" (expected {error.expected})" if error.expected else "")
            soft = torch.zeros((1, maps.label_set.count, *PARTS_SIZE))
        images.append(_columns(soft, maps.label_set, recipe, areas))
    columns = {key: np.concatenate([image[key] for image in images]) for key in images[0]}
    return _rows(chunk.start, columns, failed)


@torch.inference_mode()
def _parse(parser: Parser, images: Bytes, recipe: Recipe) -> Tensor:
    """Return a parser's soft labels of a batch; parsers come from users, too, so they are checked.

    Raises:
        FormatError: The parser returned something else.
    """
    soft = parse_flipped(parser, images) if recipe.flip else parser.parse(images)
    classes = parser.info.label_set.count
    if soft.ndim != 4 or soft.shape[:2] != (len(images), classes):
        raise FormatError(
            f"the parser {parser.info.name} returned an array of shape {tuple(soft.shape)} for {len(images)} images",
            expected=f"({len(images)}, {classes}, h, w) for the label set {parser.info.label_set.name}",
        )
    low, high = (float(value) for value in torch.aminmax(soft))
    # Written so that NaN fails too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise FormatError(
            f"the parser {parser.info.name} returned values from {low:g} to {high:g}",
            expected="probabilities from 0 to 1",
            hint="set `activation` in the TOML file beside the model, if it has one",
        )
    return soft


@torch.inference_mode()
def _columns(
    soft: Tensor, label_set: LabelSet, recipe: Recipe, areas: NDArray[np.float64]
) -> dict[str, NDArray[np.generic]]:
    if recipe.hard:
        best = soft.argmax(dim=1)
        soft = torch.nn.functional.one_hot(best, soft.shape[1]).permute(0, 3, 1, 2).to(soft.dtype)
    part_maps, body_map = group_soft(soft, label_set, recipe.grouping)
    parts = quantise(area_average(part_maps, PARTS_SIZE, areas))
    body = quantise(area_average(body_map, BODY_SIZE, areas)[:, 0])
    return {"parts": parts, "body": body, "quality": confidence(soft, body_map) * plausibility(parts, body)}


def _rows(start: int, columns: dict[str, NDArray[np.generic]], failed: Mapping[int, str]) -> MaskRows:
    status = np.full(len(columns["body"]), OK, dtype=np.uint8)
    status[list(failed)] = FAILED
    for column in columns.values():
        column[list(failed)] = 0
    return MaskRows(start, columns, status, {start + row: reason for row, reason in failed.items()})


@functools.lru_cache(maxsize=1)
def _worker_parser(spec: str, label_set: str | None, device: str) -> Parser:
    tune_allocator()
    return load_parser(spec, label_set=label_set, device=device)

"""A chunk of images in, finished rows of a mask file out: the part of a build that workers do."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.images import WHOLE_AREA, DecodedBatch, decode_batches
from pipeline.errors import DeviceError, FormatError, Rejected
from pipeline.formats.masks import BODY_SIZE, DONE, FAILED, PARTS_SIZE
from pipeline.masks.occupancy import area_average, confidence, plausibility, quantise
from pipeline.parsing.labelmaps import LabelMaps
from pipeline.parsing.labels import Grouping, LabelSet, group_soft
from pipeline.parsing.parser import Parser, load_parser, parse_flipped
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import memory_exhausted, memory_watched

BATCH_SIZE = "masks.batch_size"
"""Key of the configuration that an error about too large a batch names."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive images that go through the parser together.

    Attributes:
        start: Row of the first one.
        names: Their names.
    """

    start: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive finished rows, as `MaskWriter.write` takes them, and what failed among them."""

    start: int
    parts: Bytes
    body: Bytes
    quality: NDArray[np.float32]
    done: Bytes
    failed: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the content of masks, beside the parser and the images.

    Attributes:
        grouping: Which labels make up each part.
        flip: Average over the image and its mirror image.
        hard: Take each pixel's most likely label before resizing.
    """

    grouping: Grouping
    flip: bool = False
    hard: bool = False


def parse_chunks(
    parser: Parser, chunks: Sequence[Chunk], *, root: Path, recipe: Recipe, threads: int
) -> Iterator[Rows]:
    """Decode, parse, group and resize, chunk by chunk; the next chunks are decoded meanwhile.

    A chunk always goes through the parser as a whole, unreadable images as black ones, so that neither a resumed
    build nor a bad image changes the sums by which any other image's masks are computed.

    Args:
        parser: The parser.
        chunks: All of one size but the last.
        root: Folder that names are relative to.
        recipe: What to make of the parser's output.
        threads: Decoding threads.

    Raises:
        DeviceError: A chunk does not fit into the device's memory.
        FormatError: The parser returned something else than soft labels.
    """
    if not chunks:
        return
    size = len(chunks[0].names)
    paths = [root / name for chunk in chunks for name in chunk.names]
    decoded = decode_batches(paths, *parser.input_size, batch=size, threads=threads, fit=parser.info.fit)
    offset = 0
    for chunk, batch in zip(chunks, decoded, strict=True):
        images, areas, good = _whole_batch(batch, len(chunk.names), offset)
        failed = tuple(
            Rejected(chunk.names[int(position) - offset], rejected.reason)
            for position, rejected in zip(batch.failed_index, batch.failed, strict=True)
        )
        with memory_watched(_device(parser), functools.partial(_too_many, parser, len(images))):
            rows = _parsed(parser, chunk.start, images, recipe, areas, good, failed)
        yield rows
        offset += len(chunk.names)


@torch.inference_mode()
def parse(parser: Parser, images: Bytes, *, flip: bool) -> Tensor:
    """What a parser says of a batch, or of it and its mirror images; without gradients, as every call in a build."""
    return parse_flipped(parser, images) if flip else parser.parse(images)


def fits(parser: Parser, count: int, recipe: Recipe) -> bool:
    """Whether the device has memory for so many images a batch: tried, with black ones."""
    images = np.zeros((count, *parser.input_size, 3), np.uint8)
    try:
        _parsed(parser, 0, images, recipe, np.tile(np.array(WHOLE_AREA), (count, 1)), np.ones(count, bool), ())
    except (RuntimeError, MemoryError) as error:
        if memory_exhausted(error):
            return False
        raise
    return True


def _parsed(
    parser: Parser,
    start: int,
    images: Bytes,
    recipe: Recipe,
    areas: NDArray[np.float64],
    good: NDArray[np.bool_],
    failed: tuple[Rejected, ...],
) -> Rows:
    soft = checked(parse(parser, images, flip=recipe.flip), len(images), parser)
    return _rows(start, soft, parser.info.label_set, recipe, areas, good, failed)


def _device(parser: Parser) -> torch.device | None:
    return torch.device(parser.info.device) if parser.info.device else None


def _too_many(parser: Parser, count: int) -> DeviceError:
    return DeviceError(
        f"{count} images a batch do not fit into the memory of {parser.info.device or 'the device'}",
        where=BATCH_SIZE,
        expected="a smaller number; on a GPU also `auto`, which tries before the build begins what fits",
    )


@dataclass(frozen=True, slots=True)
class ParserWorker:
    """`parse_chunks` for one chunk in a worker process, which loads its parser once."""

    spec: str
    label_set: str | None
    device: str
    root: Path
    recipe: Recipe

    def __call__(self, chunk: Chunk) -> Rows:
        """Make the rows of one chunk."""
        parser = _worker_parser(self.spec, self.label_set, self.device)
        return next(parse_chunks(parser, [chunk], root=self.root, recipe=self.recipe, threads=1))


@dataclass(frozen=True, slots=True)
class SharedWorker:
    """`parse_chunks` for one chunk in a thread; threads share one parser."""

    parser: Parser
    root: Path
    recipe: Recipe

    def __call__(self, chunk: Chunk) -> Rows:
        """Make the rows of one chunk."""
        return next(parse_chunks(self.parser, [chunk], root=self.root, recipe=self.recipe, threads=1))


@dataclass(frozen=True, slots=True)
class LabelMapWorker:
    """Rows from finished label maps."""

    maps: LabelMaps
    recipe: Recipe

    def __call__(self, chunk: Chunk) -> Rows:
        """Make the rows of one chunk."""
        made = [self._row(chunk.start + offset, name) for offset, name in enumerate(chunk.names)]
        return Rows(
            chunk.start,
            np.concatenate([row.parts for row in made]),
            np.concatenate([row.body for row in made]),
            np.concatenate([row.quality for row in made]),
            np.concatenate([row.done for row in made]),
            tuple(rejected for row in made for rejected in row.failed),
        )

    def _row(self, start: int, name: str) -> Rows:
        areas = np.array([WHOLE_AREA])
        label_set = self.maps.label_set
        try:
            soft = self.maps.read(name)
        except FormatError as error:
            reason = error.message + (f" (expected {error.expected})" if error.expected else "")
            blank = torch.zeros((1, label_set.count, *PARTS_SIZE))
            return _rows(start, blank, label_set, self.recipe, areas, np.array([False]), (Rejected(name, reason),))
        return _rows(start, soft, label_set, self.recipe, areas, np.array([True]), ())


def checked(soft: Tensor, count: int, parser: Parser) -> Tensor:
    """What a parser returned, if it is soft labels.

    Raises:
        FormatError: It is something else; parsers come from users, too.
    """
    classes = parser.info.label_set.count
    if soft.ndim != 4 or soft.shape[:2] != (count, classes):
        raise FormatError(
            f"the parser {parser.info.name} returned an array of shape {tuple(soft.shape)} for {count} images",
            expected=f"({count}, {classes}, h, w) for the label set {parser.info.label_set.name}",
        )
    low, high = torch.aminmax(soft)
    # Written so that NaN fails too.
    if not (float(low) >= -1e-3 and float(high) <= 1 + 1e-3):
        raise FormatError(
            f"the parser {parser.info.name} returned values from {float(low):g} to {float(high):g}",
            expected="probabilities from 0 to 1",
            hint="set `activation` in the TOML file beside the model, where it has one",
        )
    return soft


def _whole_batch(batch: DecodedBatch, count: int, offset: int) -> tuple[Bytes, NDArray[np.float64], NDArray[np.bool_]]:
    """The images of a chunk, black where one could not be read; their areas; which could be read."""
    good = np.zeros(count, dtype=bool)
    good[batch.index - offset] = True
    if good.all():
        return batch.images, batch.areas, good
    images = np.zeros((count, *batch.images.shape[1:]), np.uint8)
    images[good] = batch.images
    areas = np.tile(np.array(WHOLE_AREA), (count, 1))
    areas[good] = batch.areas
    return images, areas, good


@torch.inference_mode()
def _rows(
    start: int,
    soft: Tensor,
    label_set: LabelSet,
    recipe: Recipe,
    areas: NDArray[np.float64],
    good: NDArray[np.bool_],
    failed: tuple[Rejected, ...],
) -> Rows:
    if recipe.hard:
        best = soft.argmax(dim=1)
        soft = torch.nn.functional.one_hot(best, soft.shape[1]).permute(0, 3, 1, 2).to(soft.dtype)
    part_maps, body_map = group_soft(soft, label_set, recipe.grouping)
    parts = quantise(area_average(part_maps, PARTS_SIZE, areas))
    body = quantise(area_average(body_map, BODY_SIZE, areas)[:, 0])
    quality = confidence(soft, body_map) * plausibility(parts, body)
    parts[~good], body[~good], quality[~good] = 0, 0, 0
    done = np.where(good, DONE, FAILED).astype(np.uint8)
    return Rows(start, parts, body, quality, done, failed)


@functools.lru_cache(maxsize=1)
def _worker_parser(spec: str, label_set: str | None, device: str) -> Parser:
    tune_allocator()
    return load_parser(spec, label_set=label_set, device=device)

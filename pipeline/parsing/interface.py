"""What a human parser is to the rest of the program, whichever back end computes it.

The lowest module of the parsers: the back ends import from here, and `pipeline.parsing.parser`, which opens them by
name, imports the back ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipeline.parsing.labels import LabelSet

Fit = Literal["stretch", "square"]
"""How an image comes to a parser's input size: resized straight to it, or in its own proportions, centred on zeros."""


@dataclass(frozen=True, slots=True)
class ParserInfo:
    """What a mask file records of the parser that made it, and what must be known to feed it.

    Attributes:
        name: As in the configuration, without the file (`builtin`, `schp`, ...).
        version: Of the parser; a change of version means other masks.
        label_set: What the channels of its output mean.
        native_size: Height and width of its output.
        weights_sha256: Of its weights file, or an empty string where it has none.
        backend: What computes it: `torch`, `onnxruntime`, ...
        precision: `float32`, `float16`, ...
        fit: How images are brought to its input size.
        device: Where it computes (`cpu`, `cuda:0`), for a suitable batch; empty: where the output of `parse` lies.
    """

    name: str
    version: str
    label_set: LabelSet
    native_size: tuple[int, int]
    weights_sha256: str
    backend: str
    precision: str
    fit: Fit = "stretch"
    device: str = ""


@runtime_checkable
class Parser(Protocol):
    """Anything that labels the pixels of a batch of images."""

    @property
    def info(self) -> ParserInfo:
        """What it is."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that `parse` takes."""
        ...

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Label a batch.

        Args:
            images: (B, H, W, 3) uint8, RGB, H x W being `input_size`.

        Returns:
            (B, C, h, w) float32, the probability of each label, summing to 1 over C (label sets of kind `fields`: each
            in [0, 1]). The maps cover exactly the area of the images that went in.

        Raises:
            torch.OutOfMemoryError: The batch is too large for the device; so does any RuntimeError or MemoryError say
                that `pipeline.runtime.device.memory_exhausted` knows. Where a GPU computes and the batch size is
                `auto`, smaller batches are tried before the build begins; anywhere else the error ends it.
        """
        ...


def parse_flipped(parser: Parser, images: Tensor | np.ndarray) -> Tensor:
    """Average a parser's output over images and their mirror images, left and right labels swapped back.

    Args:
        parser: Any parser.
        images: As for `Parser.parse`.

    Returns:
        As `Parser.parse`.
    """
    plain = parser.parse(images)
    mirrored = parser.parse(torch.as_tensor(images).flip(2))
    order = list(parser.info.label_set.flipped())
    return (plain + mirrored.flip(3)[:, order]) / 2

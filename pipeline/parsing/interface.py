"""The interface of human parsers, independent of the back end.

Back ends import from here; `pipeline.parsing.parser`, which loads them by name, imports the back ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipeline.parsing.labels import LabelSet

Fit = Literal["stretch", "pad", "square"]
"""How an image is fitted to the input size: resized to it; as networks with `model.fit = "pad"` see it; or with its
proportions kept, centred on a black square."""


@dataclass(frozen=True, slots=True)
class ParserInfo:
    """Description of a parser, part of which mask files record.

    Attributes:
        name: As in the configuration, without the file (`builtin`, `schp`, ...).
        version: Version of the parser; another version means other masks.
        label_set: Meaning of the output channels.
        weights_sha256: Hash of its weights file; empty without one.
        backend: `torch`, `onnxruntime`, ...
        precision: `float32`, `float16`, ...
        fit: How images are fitted to its input size.
        device: Where it computes (`cpu`, `cuda:0`), for a suitable batch size; empty: where the output of `parse` is.
    """

    name: str
    version: str
    label_set: LabelSet
    weights_sha256: str
    backend: str
    precision: str
    fit: Fit = "stretch"
    device: str = ""


@runtime_checkable
class Parser(Protocol):
    """An object that labels the pixels of a batch of images."""

    @property
    def info(self) -> ParserInfo:
        """Description of the parser."""
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
            in [0, 1]). The maps cover exactly the area of the input images.

        Raises:
            torch.OutOfMemoryError: The batch is too large for the device (or any error that
                `pipeline.runtime.memory.out_of_memory` recognises). On a GPU with the batch size `auto`, smaller
                batches are tried before the build starts.
        """
        ...


def parse_flipped(parser: Parser, images: Tensor | np.ndarray) -> Tensor:
    """Average a parser's output over images and their mirror images, with left and right labels swapped back."""
    plain = parser.parse(images)
    mirrored = parser.parse(torch.as_tensor(images).flip(2))
    order = list(parser.info.label_set.flipped())
    return (plain + mirrored.flip(3)[:, order]) / 2

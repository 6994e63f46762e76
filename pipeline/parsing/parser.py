"""What a human parser is to the rest of the program, and how one is found by name.

A parser is named `KIND` or `KIND:FILE` (`builtin`, `schp:model.pth`, `onnx:model.onnx`, `torchscript:model.pt`), or by
the name that an installed package registered under the entry-point group `sgsfa.parsers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipeline.config import suggestion
from pipeline.errors import ConfigError
from pipeline.parsing.labels import LabelSet

ENTRY_POINTS = "sgsfa.parsers"
"""Entry-point group of parsers in other packages."""

Fit = Literal["stretch", "square"]
"""How an image comes to a parser's input size: resized straight to it, or in its own proportions, centred on zeros."""


@dataclass(frozen=True, slots=True)
class ParserInfo:
    """What a mask file records of the parser that made it.

    Attributes:
        name: As in the configuration, without the file (`builtin`, `schp`, ...).
        version: Of the parser; a change of version means other masks.
        label_set: What the channels of its output mean.
        native_size: Height and width of its output.
        weights_sha256: Of its weights file, or an empty string where it has none.
        backend: What computes it: `torch`, `onnxruntime`, ...
        precision: `float32`, `float16`, ...
        fit: How images are brought to its input size.
    """

    name: str
    version: str
    label_set: LabelSet
    native_size: tuple[int, int]
    weights_sha256: str
    backend: str
    precision: str
    fit: Fit = "stretch"


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
        """
        ...


Factory = Callable[[str, str | None, str], Parser]
"""What an entry point of `sgsfa.parsers` names: (argument after the colon, label set or None, device) -> Parser."""


def load_parser(spec: str, *, label_set: str | None = None, device: str = "auto") -> Parser:
    """Load a parser by its name.

    Args:
        spec: `builtin`, `schp:FILE`, `onnx:FILE`, `torchscript:FILE`, or an installed parser's `NAME[:ARGUMENT]`.
        label_set: Label set of its output where it does not say it itself: a name or a TOML file.
        device: As in the configuration.

    Raises:
        ConfigError: There is no such parser, or its file is not named.
        WeightsError: Its weights cannot be used.
        DeviceError: The device is not there.
    """
    kind, _, argument = spec.partition(":")
    if kind == "builtin":
        from pipeline.parsing.builtin import load_builtin
        from pipeline.runtime.device import resolve_device

        return load_builtin(resolve_device(device))
    if kind == "schp":
        from pipeline.parsing.schp import load_schp

        return load_schp(_file(kind, argument), label_set=label_set, device=device)
    if kind == "onnx":
        from pipeline.parsing.onnx import load_onnx

        return load_onnx(_file(kind, argument), label_set=label_set, device=device)
    if kind == "torchscript":
        from pipeline.parsing.torchscript import load_torchscript

        return load_torchscript(_file(kind, argument), label_set=label_set, device=device)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in installed:
        known = ("builtin", "schp", "onnx", "torchscript", "label-maps", *sorted(installed))
        raise ConfigError(
            f"there is no parser {spec!r}",
            expected=" | ".join(known),
            hint=suggestion(kind, known) or "`sgsfa masks build --help` lists the parsers",
        )
    return _from_package(installed[kind], argument, label_set, device)


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


def _file(kind: str, argument: str) -> Path:
    if not argument:
        raise ConfigError(f"the parser {kind!r} needs a file", expected=f"{kind}:FILE")
    return Path(argument).expanduser()


def _from_package(point: EntryPoint, argument: str, label_set: str | None, device: str) -> Parser:
    try:
        factory: Factory = point.load()
    except Exception as error:
        raise ConfigError(
            f"the installed parser {point.name!r} cannot be imported: {error}", where=point.value
        ) from error
    parser = factory(argument, label_set, device)
    if not isinstance(parser, Parser):
        raise ConfigError(
            f"the installed parser {point.name!r} gave a {type(parser).__name__}",
            where=point.value,
            expected="an object with info, input_size and parse(); see docs/parsers.md",
        )
    return parser

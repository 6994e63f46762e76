"""Human parsers by name; what one is stands in `pipeline.parsing.interface`, whose names can be imported from here.

A parser is named `KIND` or `KIND:FILE` (`builtin`, `schp:model.pth`, `onnx:model.onnx`, `torchscript:model.pt`), or by
the name that an installed package registered under the entry-point group `sgsfa.parsers`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pipeline.config import suggestion
from pipeline.errors import ConfigError, DeviceError
from pipeline.parsing.interface import Fit, Parser, ParserInfo, parse_flipped
from pipeline.runtime.files import at_home

__all__ = ["ENTRY_POINTS", "Factory", "Fit", "Parser", "ParserInfo", "load_parser", "parse_flipped"]

ENTRY_POINTS = "sgsfa.parsers"
"""Entry-point group of parsers in other packages."""

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
        DeviceError: The device is not there, or its memory is too small for one image.
    """
    from pipeline.runtime.device import memory_watched

    def too_large() -> DeviceError:
        where = "the device" if device == "auto" else device
        hint = None if device == "cpu" else "use --device cpu"
        return DeviceError(f"the parser {spec} does not fit into the memory of {where}", hint=hint)

    with memory_watched(None, too_large):
        return _load(spec, label_set, device)


def _load(spec: str, label_set: str | None, device: str) -> Parser:
    kind, _, argument = spec.partition(":")
    if kind == "builtin":
        from pipeline.parsing.builtin import LABEL_SET as BUILTIN_LABELS
        from pipeline.parsing.builtin import load_builtin
        from pipeline.runtime.device import resolve_device

        if label_set not in (None, BUILTIN_LABELS):
            raise ConfigError(
                f"the built-in parser gives the labels of {BUILTIN_LABELS}, not {label_set!r}",
                where="masks.label_set",
                hint="leave it out",
            )
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
        written = ("builtin", "schp:FILE", "onnx:FILE", "torchscript:FILE", "label-maps:DIR", *sorted(installed))
        known = [each.partition(":")[0] for each in written]
        raise ConfigError(
            f"there is no parser {spec!r}",
            expected=" | ".join(written),
            hint=suggestion(kind, known, after=f":{argument}" if argument else "")
            or "`sgsfa masks build --help` lists the parsers",
        )
    return _from_package(installed[kind], argument, label_set, device)


def _file(kind: str, argument: str) -> Path:
    if not argument:
        raise ConfigError(f"the parser {kind!r} needs a file", expected=f"{kind}:FILE")
    return at_home(argument)


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
            expected="an object with info, input_size and parse(); see docs/how-to/own-parser.md",
        )
    return parser

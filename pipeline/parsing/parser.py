"""Load human parsers by name; `pipeline.parsing.interface` defines what a parser is.

A parser is named `KIND` or `KIND:FILE` (`builtin`, `schp:model.pth`, `onnx:model.onnx`), or by the name that an
installed package registers in the entry-point group `sgsfa.parsers`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from pipeline.config import suggestion
from pipeline.errors import ConfigError
from pipeline.parsing.interface import Fit, Parser, ParserInfo, parse_flipped
from pipeline.runtime.files import at_home

__all__ = ["ENTRY_POINTS", "Factory", "Fit", "Parser", "ParserInfo", "load_parser", "parse_flipped"]

ENTRY_POINTS = "sgsfa.parsers"
"""Entry-point group of parsers in other packages."""

Factory = Callable[[str, str | None, str], Parser]
"""Type of an entry point of `sgsfa.parsers`: (argument after the colon, label set or None, device) -> Parser."""


def load_parser(spec: str, *, label_set: str | None = None, device: str = "auto") -> Parser:
    """Load a parser by its name.

    Args:
        spec: `builtin`, `schp:FILE`, `onnx:FILE`, or an installed parser's `NAME[:ARGUMENT]`.
        label_set: Label set of its output, if the parser does not state one: a name or a TOML file.
        device: As in the configuration.

    Raises:
        ConfigError: The parser is unknown, or its file is not named.
        WeightsError: Its weights cannot be used.
        DeviceError: The device does not exist.
    """
    kind, _, argument = spec.partition(":")
    if kind == "builtin":
        from pipeline.parsing.builtin import LABEL_SET as BUILTIN_LABELS
        from pipeline.parsing.builtin import load_builtin
        from pipeline.runtime.device import resolve_device

        if label_set not in (None, BUILTIN_LABELS):
            raise ConfigError(
                f"the built-in parser has the labels of {BUILTIN_LABELS}, not {label_set!r}",
                where="masks.label_set",
                hint="leave it out",
            )
        return load_builtin(resolve_device(device))
    if kind in ("schp", "onnx"):
        from pipeline.parsing.onnx import load_onnx
        from pipeline.parsing.schp import load_schp

        if not argument:
            raise ConfigError(f"the parser {kind!r} needs a file", expected=f"{kind}:FILE")
        load: Callable[..., Parser] = load_schp if kind == "schp" else load_onnx
        return load(at_home(argument), label_set=label_set, device=device)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if kind not in installed:
        written = ("builtin", "schp:FILE", "onnx:FILE", "label-maps:DIR", *sorted(installed))
        known = [each.partition(":")[0] for each in written]
        raise ConfigError(
            f"unknown parser {spec!r}",
            expected=" | ".join(written),
            hint=suggestion(kind, known, after=f":{argument}" if argument else ""),
        )
    return _from_package(installed[kind], argument, label_set, device)


def _from_package(point: EntryPoint, argument: str, label_set: str | None, device: str) -> Parser:
    try:
        factory: Factory = point.load()
    except Exception as error:
        raise ConfigError(
            f"the installed parser {point.name!r} cannot be imported", where=point.value, cause=error
        ) from error
    parser = factory(argument, label_set, device)
    if not isinstance(parser, Parser):
        raise ConfigError(
            f"the installed parser {point.name!r} returned a {type(parser).__name__}",
            where=point.value,
            expected="an object with info, input_size and parse(); see docs/how-to/own-parser.md",
        )
    return parser

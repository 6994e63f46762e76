"""Options and texts that the commands share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.config import RunConfig

log = logging.getLogger("sgsfa.cli")

DEFAULT_FILE = Path("sgsfa.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file; without --preset by default sgsfa.toml in this folder, if it exists.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", metavar="NAME", help="Start from a preset: demo, paper, strong, baseline or finetune."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key, as in train.epochs=60. Repeatable."),
]


class Switch(StrEnum):
    """The value of an option that is on, off, or decided by the configuration."""

    ON = "on"
    OFF = "off"


ExpectCountsOption = Annotated[
    Switch | None,
    typer.Option(
        "--expect-counts",
        help="on: reject a known data set whose counts differ from the published ones; off: accept it with a note. "
        "Default: data.expect_counts of the configuration, otherwise on.",
    ),
]
CheckpointOption = Annotated[
    Path,
    typer.Option("--checkpoint", metavar="FILE", help="A checkpoint file, or builtin: the model in this package."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and notes, but not warnings.")]


def command_app(help_text: str | None = None, *lines: str) -> typer.Typer:
    """The `app` that each module in `sgsfa_cli.commands` defines.

    Args:
        help_text: For a group, its description; a single command has a docstring.
        lines: For a group, examples.
    """
    return typer.Typer(
        help=help_text,
        epilog=examples(*lines) if lines else None,
        no_args_is_help=help_text is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def examples(*lines: str) -> str:
    """Return the epilog of a command: runnable command lines."""
    # Rich takes [x] for markup; in help texts it is always meant literally.
    return "\n".join(["Examples:", *(f"  {line}".replace("[", r"\[") for line in lines)])


def overriding(options: Mapping[str, Any], section: str | None = None) -> list[str]:
    """Turn the given options of a command into overrides.

    Args:
        options: Values by dotted key; None: not given.
        section: Section of the configuration that all keys are in.
    """
    prefix = "" if section is None else f"{section}."
    return [f"{prefix}{key}={_toml(value)}" for key, value in options.items() if value is not None]


def _toml(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's, but for pairs of surrogates and a raw DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load(config: Path | None, preset: str | None, overrides: Sequence[str] | None) -> RunConfig:
    """Resolve the configuration from the shared options.

    Raises:
        ConfigError: See `pipeline.config_file.load_config`.
    """
    from pipeline.config_file import load_config

    if config is None and preset is None and DEFAULT_FILE.is_file():
        config = DEFAULT_FILE
    return load_config(config, preset=preset, overrides=overrides or ())


def warn_of_defaults(settings: RunConfig, config: Path | None, preset: str | None) -> None:
    """Warn before a long run on rendered images that nothing was configured: most likely the folder is wrong."""
    if config is None and preset is None and not DEFAULT_FILE.is_file() and settings.data.source == "rendered":
        log.warning(
            "no %s here and neither -c nor --preset given: using the defaults, with rendered images", DEFAULT_FILE
        )

"""How commands are declared: the options that they share, and those that set keys of the configuration."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sgsfa_cli import console

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs
    from pipeline.stages.run import RunReport

log = logging.getLogger("sgsfa.cli")

DEFAULT_FILE = Path("sgsfa.toml")

_nothing_configured = False
"""Whether the running command has neither a configuration file nor a preset."""

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
CheckpointOption = Annotated[
    Path,
    typer.Option("--checkpoint", metavar="FILE", help="A checkpoint file, or builtin: the model in this package."),
]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A checkpoint file, or builtin: the model in this package.")
]
SheetOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The image file to write.")]
AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", metavar="RUN", help="Compare with an earlier result: its folder or result.json."),
]
SplitOption = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="SPLIT", help="Only these images: train, query, gallery or all. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and notes, but not warnings.")]


@dataclass(frozen=True)
class Setting:
    """An option that sets keys of the configuration; without it they keep their values.

    Attributes:
        name: Name of the parameter, by which a command may ask for the value itself.
        keys: The keys.
        hint: Type of the value, with the option.
        convert: Turns the value into that of the keys.
    """

    name: str
    keys: tuple[str, ...]
    hint: Any
    convert: Callable[[Any], Any]

    def overrides(self, value: Any) -> list[str]:
        """Return what --set would have to be given."""
        if value is None:
            return []
        # JSON's strings, numbers and booleans are TOML's, but for pairs of surrogates and a raw DEL.
        text = json.dumps(self.convert(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        return [f"{key}={text}" for key in self.keys]


def setting(
    keys: str,
    *flags: str,
    kind: Any = str,
    metavar: str | None = None,
    help: str,  # noqa: A002 - its name in typer
    convert: Callable[[Any], Any] = lambda value: value,
) -> Setting:
    """Return an option that sets `keys` (separated by blanks), by default called like the first one."""
    names = tuple(keys.split())
    name = names[0].rpartition(".")[2]
    # Typer derives the flags from the parameter's name.
    hint = Annotated[kind | None, typer.Option(*flags, metavar=metavar, help=help)]
    return Setting(name, names, hint, convert)


class Switch(StrEnum):
    """The value of an option that is on, off, or decided by the configuration."""

    ON = "on"
    OFF = "off"


EXPECT_COUNTS_HELP = (
    "on: reject a known data set whose counts differ from the published ones; off: accept it with a note."
)
EXPECT_COUNTS = setting(
    "data.expect_counts",
    kind=Switch,
    help=f"{EXPECT_COUNTS_HELP} Default: data.expect_counts of the configuration, otherwise on.",
    convert=lambda switch: switch is Switch.ON,
)
RULE = setting("matching.rule", metavar="RULE", help="shrunk, mean, sum, query or all (docs/concepts/matching.md).")
METRIC = setting("matching.metric", metavar="METRIC", help="cosine or euclidean.")
VISIBILITY = setting("matching.visibility", metavar="KIND", help="hard or soft.")
FLIP = setting("extract.flip", kind=bool, help="Average with the mirror image.")
BATCH_SIZE = setting("extract.batch_size", kind=int, metavar="N", help="Images per batch.")


def device(keys: str) -> Setting:
    """Return the option `--device`."""
    return setting(keys, "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")


def amp(key: str) -> Setting:
    """Return the option `--amp`."""
    return setting(key, metavar="PRECISION", help="Mixed precision: off, bf16 or fp16.")


def command_app(help_text: str | None = None, *lines: str) -> typer.Typer:
    """Return the `app` that each module in `sgsfa_cli.commands` defines.

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


Function = Callable[..., "Exception | None"]


def command(
    app: typer.Typer, *lines: str, name: str | None = None, sets: Sequence[Setting] = ()
) -> Callable[[Function], Function]:
    """Register a command.

    Every command has --json and --quiet. One with a parameter `settings` has --config, --preset, --set and the options
    in `sets`, and is called with the configuration that they result in. A command returns the error that it ends with
    after its result is printed, for example that some inputs were skipped.

    Args:
        app: The module's app.
        lines: Examples.
        name: Its name, by default the function's.
        sets: Options that set keys of the configuration.
    """

    def register(function: Function) -> Function:
        asked = inspect.signature(function).parameters
        configured = "settings" in asked
        hints = _hints(function)
        set_names = {each.name for each in sets}
        parameters = [asked[name].replace(annotation=hint) for name, hint in hints.items() if name not in set_names]
        shared: list[tuple[str, Any, bool | None]] = [(each.name, each.hint, None) for each in sets]
        if configured:
            shared += [("config", ConfigOption, None), ("preset", PresetOption, None), ("overrides", SetOption, None)]
        shared += [("json", JsonOption, False), ("quiet", QuietOption, False)]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, hint, default in shared
        ]

        def run(**values: Any) -> None:
            console.use(json=values["json"], quiet=values["quiet"])
            if configured:
                values["settings"] = _settings(sets, values)
            error = function(**{name: values[name] for name in asked})
            if error is not None:
                raise error

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        app.command(name, epilog=examples(*lines))(run)
        return function

    return register


def _hints(function: Function) -> dict[str, Any]:
    """Return the types of a command's own parameters, with their options; help must not import `settings`' type."""
    texts = {name: text for name, text in function.__annotations__.items() if name not in ("settings", "return")}
    return get_type_hints(SimpleNamespace(__annotations__=texts), function.__globals__, include_extras=True)


def _settings(sets: Sequence[Setting], values: Mapping[str, Any]) -> RunConfig:
    """Resolve the configuration from the options of a command; its own take precedence over --set."""
    from pipeline.config_file import load_config

    global _nothing_configured
    config, preset, overrides = values["config"], values["preset"], list(values["overrides"] or ())
    for each in sets:
        overrides += each.overrides(values[each.name])
    if config is None and preset is None and DEFAULT_FILE.is_file():
        config = DEFAULT_FILE
    _nothing_configured = config is None and preset is None
    return load_config(config, preset=preset, overrides=overrides)


def warn_of_defaults(settings: RunConfig) -> None:
    """Warn before a long run on rendered images that nothing was configured: most likely the folder is wrong."""
    if _nothing_configured and settings.data.source == "rendered":
        log.warning(
            "no %s here and neither -c nor --preset given: using the defaults, with rendered images", DEFAULT_FILE
        )


def run_until(
    settings: RunConfig, until: str | None, *, allow_stopped: bool = False, **selection: Any
) -> tuple[RunReport, RejectedInputs | None]:
    """Bring the configured run up to date to a stage; returns the error to end with if inputs were skipped.

    Raises:
        StoppedRun: A stage rejected inputs that are not allowed; returned as the error with `allow_stopped`.
    """
    from pipeline.errors import RejectedInputs
    from pipeline.stages.run import StoppedRun, run_stages

    warn_of_defaults(settings)
    try:
        report = run_stages(settings, until=until, progress=console.progress(), **selection)
    except StoppedRun as stopped:
        if not allow_stopped:
            raise
        return stopped.report, stopped
    rejected = RejectedInputs(until or "run", report.rejected, total=report.total) if report.rejected else None
    return report, rejected


def refuse(given: Mapping[str, object], need: str, **details: str) -> None:
    """Refuse options that are useless here: `--out needs --features`.

    Raises:
        ConfigError: One of them was given.
    """
    from pipeline.errors import ConfigError

    if names := [name for name, value in given.items() if value]:
        raise ConfigError(f"{' and '.join(names)} {'needs' if len(names) == 1 else 'need'} {need}", **details)


def examples(*lines: str) -> str:
    """Return the epilog of a command: runnable command lines."""
    # Rich takes [x] for markup; in help texts it is always meant literally.
    return "\n".join(["Examples:", *(f"  {line}".replace("[", r"\[") for line in lines)])

"""The app: a table of commands, each loaded when it is asked for, so that help comes at once."""

from __future__ import annotations

import importlib
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sgsfa_cli import console, torchrun
from sgsfa_cli.options import examples


@dataclass(frozen=True, slots=True)
class Entry:
    """A command of the program.

    Attributes:
        name: What the user types.
        panel: Heading it stands under in `sgsfa --help`.
        summary: One line for `sgsfa --help`.
        group: It has commands of its own.
    """

    name: str
    panel: str
    summary: str
    group: bool = False

    @property
    def module(self) -> str:
        """The module whose `app` holds the command."""
        return f"sgsfa_cli.commands.{self.name}"


ENTRIES = (
    Entry("init", "Whole runs", "Write a commented sgsfa.toml."),
    Entry("run", "Whole runs", "Run all stages, from images to metrics; does only what is missing."),
    Entry("status", "Whole runs", "Show each stage: fresh, stale (and why), partial or missing."),
    Entry("artifacts", "Whole runs", "List, verify and prune what runs have left.", group=True),
    Entry("data", "Images and masks", "Check, list, preview and render data sets.", group=True),
    Entry("masks", "Images and masks", "Build part masks and look at them.", group=True),
    Entry("train", "Single stages", "Train a network."),
    Entry("extract", "Single stages", "Compute the features of a data set."),
    Entry("export", "Single stages", "Write a checkpoint as an ONNX model."),
    Entry("eval", "Single stages", "Compute CMC, mAP and mINP from features."),
    Entry("search", "Looking at people", "Find the gallery images that show the person of an image."),
    Entry("compare", "Looking at people", "Compare two images, part by part."),
)


class Commands(TyperGroup):
    """A group that lists its commands from `ENTRIES` and imports only the one that runs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in ENTRIES:
            self.commands[entry.name] = TyperCommand(name=entry.name, help=entry.summary, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command named first in `args`, a misspelt one with a suggestion, and load it."""
        name, _, rest = super().resolve_command(ctx, args)
        entry = next((entry for entry in ENTRIES if entry.name == name), None)
        return name, None if entry is None else load_command(entry), rest

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options."""
        return _without_values(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors become a panel and an exit code."""
        with console.guard():
            return super().invoke(ctx)


def load_command(entry: Entry) -> Any:
    """Import a command's module and build its parser."""
    app = importlib.import_module(entry.module).app
    return _tidy(typer.main.get_group(app) if entry.group else typer.main.get_command(app))


def _tidy(command: Any) -> Any:
    """Have help show a flag as `--json`, not as `--json <bool>`, which it does not take."""
    listed = command.get_params
    # What is listed has the option --help, which is no parameter of the command itself.
    command.get_params = lambda ctx: _without_values(listed(ctx))
    for other in getattr(command, "commands", {}).values():
        _tidy(other)
    return command


def _without_values(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="sgsfa",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from pipeline.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback(epilog=examples("sgsfa run --preset demo", "sgsfa masks build --help"))
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Occluded person re-identification: part masks, training, features and evaluation.

    Exit codes: 0 done, 1 a defect of the program, 2 something you can put right, 3 done but some inputs were
    rejected, 130 stopped by Ctrl-C.
    """


def run() -> None:
    """Entry point of the `sgsfa` command."""
    try:
        app(prog_name="sgsfa")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            torchrun.leave(stop.code or 0)
        raise
    except KeyboardInterrupt:
        torchrun.leave(console.EXIT_INTERRUPTED)
        raise
    except Exception as error:
        torchrun.record_error(error)
        traceback.print_exc()
        sys.stderr.write("\nThis is a defect of sgsfa. Please report it with the lines above.\n")
        torchrun.leave(1)
        sys.exit(1)

"""The app: a table of commands, each imported when it is used, so that help is fast."""

from __future__ import annotations

import importlib
import io
import logging
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sgsfa_cli import console, exit_codes, torchrun
from sgsfa_cli.options import examples


@dataclass(frozen=True, slots=True)
class Entry:
    """A command of the program.

    Attributes:
        name: What the user types.
        panel: Heading in `sgsfa --help`.
        summary: One line for `sgsfa --help`.
        group: It has commands of its own.
    """

    name: str
    panel: str
    summary: str
    group: bool = False


ENTRIES = (
    Entry("init", "Whole runs", "Write a commented sgsfa.toml."),
    Entry("run", "Whole runs", "Run all stages, from images to metrics; only those that are missing or stale run."),
    Entry("status", "Whole runs", "Show the state of each stage, and why a stage is stale."),
    Entry("artifacts", "Whole runs", "List, verify and prune cached artifacts.", group=True),
    Entry("data", "Images and masks", "Check, list, preview and render data sets.", group=True),
    Entry("masks", "Images and masks", "Build, inspect and export part masks.", group=True),
    Entry("train", "Single stages", "Train a network."),
    Entry("extract", "Single stages", "Extract the features of a data set."),
    Entry("export", "Single stages", "Export a checkpoint as an ONNX model."),
    Entry("bench", "Single stages", "Measure the speed of a network on this machine."),
    Entry("hub", "Single stages", "Upload and download checkpoints (Hugging Face Hub).", group=True),
    Entry("eval", "Single stages", "Compute CMC, mAP and mINP from features."),
    Entry("report", "Single stages", "Write a page that shows what an evaluation found and why."),
    Entry("search", "Retrieval", "Find the nearest gallery images of a query image."),
    Entry("compare", "Retrieval", "Compare two images, part by part."),
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
        if entry is None:
            return name, None, rest
        command = load_command(entry)
        leaf = command.commands.get(rest[0] if rest else "", command) if entry.group else command
        ctx.meta["options"] = [option for parameter in leaf.params for option in parameter.opts]
        return name, command, rest

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options."""
        return _without_values(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the group's own options; errors are JSON from here on, if the command's options ask for it."""
        console.begin(ctx.meta, json="--json" in args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors become a message and an exit code."""
        with exit_codes.guard(ctx):
            return super().invoke(ctx)


def load_command(entry: Entry) -> Any:
    """Import a command's module and build its parser."""
    app = importlib.import_module(f"sgsfa_cli.commands.{entry.name}").app
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

    Exit codes: 0 success, 1 internal error, 2 invalid input or configuration, 3 finished with some inputs skipped,
    130 interrupted.
    """


def run() -> None:
    """Entry point of the `sgsfa` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A code page that lacks a character of a name must not end a finished run with an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Without a home folder it uses a temporary cache and says so in three lines.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        app(prog_name="sgsfa")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            torchrun.leave(stop.code or 0)
        raise
    except KeyboardInterrupt:
        torchrun.leave(exit_codes.EXIT_INTERRUPTED)
        raise
    except Exception as error:
        torchrun.record_error(error)
        traceback.print_exc()
        message = f"internal error: {type(error).__name__}: {error}"
        sys.stderr.write(f"\n{message}\nPlease report it with the lines above.\n")
        if console.wants_json():
            console.print_json(console.error_as_json(message, [], exit_codes.EXIT_INTERNAL))
        torchrun.leave(exit_codes.EXIT_INTERNAL)
        sys.exit(exit_codes.EXIT_INTERNAL)

"""`sgsfa init`: a commented configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import DEFAULT_FILE, PresetOption, SetOption, command, command_app

app = command_app()


@command(app, "sgsfa init", "sgsfa init --preset strong --set data.source=csv:people.csv --set name=people people.toml")
def init(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write.", show_default=True)] = DEFAULT_FILE,
    preset: PresetOption = None,
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a configuration file with every key, its meaning and its value.

    Without --preset the values are the defaults. Commands read sgsfa.toml in the current folder.
    """
    from pipeline.config_file import load_config, to_toml
    from pipeline.errors import ConfigError
    from pipeline.runtime.files import atomic_write

    if file.exists() and not force:
        raise ConfigError("file exists", where=file, hint="--force overwrites it")
    settings = load_config(preset=preset, overrides=overrides or ())
    with atomic_write(file) as temporary:
        temporary.write_text(to_toml(settings, comments=True), encoding="utf-8")
    console.emit({"written": file}, lambda: [f"Written: {file}. Edit it, then: sgsfa run"])

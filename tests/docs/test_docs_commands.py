"""Command lines in the pages: each one parses with the options that the program has."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from sgsfa_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^ *```(?:sh|console)[^\n]*\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)


def command_lines(page):
    """Return the sgsfa and torchrun command lines in the fenced blocks of a page."""
    lines = []
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        lines += re.findall(r"^ *(?:\$ )?((?:sgsfa|torchrun) .*)$", block.replace("\\\n", " "), flags=re.MULTILINE)
    return lines


def shown_commands():
    for page in PAGES:
        for line in command_lines(page):
            yield pytest.param(line, id=f"{page.stem}: {line}")


@pytest.mark.parametrize("line", list(shown_commands()))
def test_command__parses(line):
    words = shlex.split(line, comments=True)
    words = words[1 + words.index("sgsfa" if "sgsfa" in words else "sgsfa_cli") :]
    context = typer.Context(get_command(app), info_name="sgsfa")
    while hasattr(context.command, "resolve_command") and not words[0].startswith("-"):
        name, command, words = context.command.resolve_command(context, words)
        context = typer.Context(command, info_name=name, parent=context)
    with contextlib.suppress(typer.Exit):  # --help
        context.command.make_context(context.info_name, list(words), parent=context.parent)

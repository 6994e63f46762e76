import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.version import __version__
from sgsfa_cli import main
from sgsfa_cli.main import ENTRIES, load_command

HELP_SECONDS = 0.6
"""Of the processor, not of the clock, which others use too. Generous; a quiet machine needs a third of it."""

runner = CliRunner()


def commands():
    """(words after `sgsfa`, command) for every command that does something."""
    for entry in ENTRIES:
        command = load_command(entry)
        if entry.group:
            yield from ((f"{entry.name} {name}", child) for name, child in command.commands.items())
        else:
            yield entry.name, command


def examples(command):
    lines = (line.strip() for line in (command.epilog or "").splitlines())
    return [line.replace(r"\[", "[") for line in lines if line and line != "Examples:"]


EVERY = dict(commands())


def disarm(command):
    """Have a command parse its options and do nothing."""
    if hasattr(command, "commands"):
        for child in command.commands.values():
            disarm(child)
    else:
        command.callback = lambda **options: None
    return command


@pytest.mark.parametrize("words", EVERY)
def test_every_command_has_help_and_examples_that_parse(words, monkeypatch):
    command = EVERY[words]
    assert command.help, "a command says what it does"
    found = examples(command)
    assert found, "a command's help has an example"
    monkeypatch.setattr(main, "load_command", lambda entry: disarm(load_command(entry)))
    for line in found:
        # torchrun's own options are none of ours.
        arguments = shlex.split(line)
        start = arguments.index("sgsfa") if "sgsfa" in arguments else arguments.index("sgsfa_cli")
        result = runner.invoke(main.app, arguments[start + 1 :])
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize("words", [entry.name for entry in ENTRIES])
def test_help_of_every_command(words):
    for option in ("--help", "-h"):
        result = runner.invoke(main.app, [words, option])
        assert result.exit_code == 0
        assert "Usage" in result.output
        assert "<bool>" not in result.output
        assert "[[" not in result.output
        assert "Examples:" in result.output


def test_help_of_the_program_shows_flags_without_values():
    assert "<bool>" not in runner.invoke(main.app, ["--help"]).output


def test_the_entries_are_the_modules():
    folder = Path(main.__file__).parent / "commands"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {entry.name for entry in ENTRIES} <= modules
    for name in modules - {entry.name for entry in ENTRIES}:
        assert "_" in name, f"{name}.py is no command; a group's second module is called GROUP_NAME.py"


def test_without_a_command_help_is_shown():
    result = runner.invoke(main.app, [])
    for entry in ENTRIES:
        assert entry.name in result.output


def test_version():
    assert runner.invoke(main.app, ["--version"]).output.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["rnu"], "run"),
        (["artifact"], "artifacts"),
        (["artifacts", "lst"], "list"),
        (["run", "--presett", "demo"], "--preset"),
        (["run", "--unti", "masks"], "--until"),
        (["status", "--jsn"], "--json"),
    ],
)
def test_what_is_misspelt_is_suggested_right(arguments, suggested):
    result = runner.invoke(main.app, arguments)
    assert result.exit_code == 2
    assert suggested in result.output


def fresh_python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_help_imports_nothing_heavy_and_comes_at_once():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from sgsfa_cli.main import app\n"
        "CliRunner().invoke(app, sys.argv[1:])\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in "
        "('torch', 'numpy', 'cv2', 'pipeline', 'h5py', 'numba', 'matplotlib')))\n"
    )
    for words in ([], *([entry.name] for entry in ENTRIES)):
        assert fresh_python("-c", code, *words, "--help").stdout.strip() == "", words


def test_help_is_within_its_time():
    resource = pytest.importorskip("resource")

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(3):
        before = used()
        assert fresh_python("-m", "sgsfa_cli", "--help").returncode == 0
        times.append(used() - before)
    assert min(times) < HELP_SECONDS


def test_the_installed_command_is_this_one():
    try:
        points = importlib.metadata.entry_points(group="console_scripts", name="sgsfa")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("sgsfa is not installed here")
    if not points:
        pytest.skip("sgsfa is not installed here")
    assert {point.value for point in points} == {"sgsfa_cli.main:run"}


def test_import_rules_hold():
    pytest.importorskip("importlinter")
    root = Path(main.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout

import errno
import json
import subprocess
import sys

import pytest
import torch
import typer

import pipeline.runtime.memory  # noqa: F401  recognises exhausted memory
from pipeline.errors import ConfigError, DataError, Rejected, RejectedInputs, SgsfaError
from sgsfa_cli import console, exit_codes
from sgsfa_cli.console import in_terms_of


class Context:
    """The part of a command-line context that `guard` reads."""

    def __init__(self, options):
        self.meta = {"options": options}


def code_of(error, *, json=False, options=()):
    console.begin(json=json)
    with pytest.raises(typer.Exit) as caught, exit_codes.guard(Context(options)):
        raise error
    return caught.value.exit_code


def test_user_error__is_one_panel_and_ends_with_2(capsys):
    assert code_of(DataError("no images", where="/data/x", expected="some", hint="look there")) == 2
    text = capsys.readouterr()
    assert text.out == ""
    for part in ("no images", "/data/x", "some", "look there"):
        assert part in text.err
    assert "Traceback" not in text.err


def test_user_error__as_json(capsys):
    assert code_of(DataError("no images", where="/data/x", hint="look there"), json=True) == 2
    text = capsys.readouterr()
    assert text.err == ""
    assert json.loads(text.out)["error"] == {
        "message": "no images",
        "where": "/data/x",
        "expected": None,
        "hint": "look there",
        "exit_code": 2,
    }


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 8.00 GiB"), torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")]
)
def test_exhausted_memory__is_not_an_internal_error(capsys, error):
    assert code_of(error) == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert str(error) in text.err


def test_message__brackets_are_not_markup(capsys):
    code_of(DataError("a [red]name[/red] [x", where="[a].jpg"))
    text = capsys.readouterr().err
    assert "a [red]name[/red] [x" in text
    assert "[a].jpg" in text


def test_rejected_inputs__are_grouped_by_reason_and_end_with_3(capsys):
    rejected = [Rejected(f"{number}.jpg", "truncated") for number in range(30)]
    rejected += [Rejected(f"x{number}.jpg", f"reason {number}") for number in range(30)]
    assert code_of(RejectedInputs("masks", rejected, total=100)) == 3
    text = capsys.readouterr().err
    assert "60 of 100" in text
    assert text.count("truncated") == 1
    assert "27 more" in text
    assert "x18.jpg" in text
    assert "x19.jpg" not in text
    assert "11 more reasons" in text


def test_rejected_inputs__leave_standard_output_to_the_result(capsys):
    assert code_of(RejectedInputs("masks", [Rejected("a.jpg", "truncated")], total=2), json=True) == 3
    assert capsys.readouterr().out == ""


def test_ctrl_c__ends_with_130(capsys):
    assert code_of(KeyboardInterrupt()) == 130
    assert "resume" in capsys.readouterr().err


def test_user_error__names_the_command_that_writes_a_missing_file(capsys):
    code_of(ConfigError("configuration file not found", where="a.toml"))
    assert "sgsfa init" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOLCK])
def test_system_error__names_the_file(capsys, number):
    assert code_of(OSError(number, "out of order", "/data/out.h5")) == 2
    assert "/data/out.h5" in capsys.readouterr().err


def test_other_library_errors__keep_their_code(capsys):
    assert code_of(SgsfaError("inside")) == 1


@pytest.mark.parametrize("error", [ValueError("x"), BrokenPipeError(), typer.Exit(5)])
def test_internal_errors_and_exits__pass(error):
    with pytest.raises(type(error)), exit_codes.guard():
        raise error


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("set masks.allow_failed=true", {"--set"}, "--set masks.allow_failed=true"),
        ("set masks.allow_failed=true", {"--set", "--allow-failed"}, "--allow-failed"),
        ("set data.expect_counts=false to continue", {"--expect-counts"}, "--expect-counts off to continue"),
        ("set data.expect_counts=false", {"--json"}, "set data.expect_counts=false"),
        ("--set train.lr=1, model.width = 64;", {"--set"}, "--set train.lr=1, --set model.width=64;"),
    ],
)
def test_in_terms_of__assignments_become_options_of_the_command(text, options, expected):
    assert in_terms_of(text, options) == expected


def fresh_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["run", "--jsn"], ["run", "--epochs", "3"], ["rnu"]])
def test_usage_error__is_json_if_asked_for(words):
    result = fresh_python("from sgsfa_cli.main import run; run()", *words, "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2


def test_internal_error__keeps_its_traceback_and_ends_with_1():
    code = (
        "import sgsfa_cli.main as main\n"
        "def broken(entry): raise ZeroDivisionError('broken')\n"
        "main.load_command = broken\n"
        "main.run()\n"
    )
    result = fresh_python(code, "run", "--json")
    assert result.returncode == 1
    assert "ZeroDivisionError: broken" in result.stderr
    assert "Traceback" in result.stderr
    assert json.loads(result.stdout)["error"]["exit_code"] == 1


def test_standard_output__escapes_what_its_code_page_lacks():
    code = (
        "import sys, sgsfa_cli.main as main, sgsfa_cli.console as console\n"
        "main.app = lambda **_: console.emit({}, lambda: [console.table('A', rows=[('行人',)])])\n"
        "main.run()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "cp1252", "PATH": "/usr/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert b"\\u884c\\u4eba" in result.stdout

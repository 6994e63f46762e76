import dataclasses
import errno
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

import pipeline.runtime.device  # noqa: F401  what knows of exhausted memory
from pipeline.errors import DataError, Rejected, RejectedInputs, SgsfaError
from pipeline.runtime.progress import SILENT
from sgsfa_cli import console


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 100 columns wide in place of standard error."""
    text = io.StringIO()
    made = Console(file=text, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(console, "err", lambda: made)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    return text


def code_of(error):
    with pytest.raises(typer.Exit) as caught, console.guard():
        raise error
    return caught.value.exit_code


# Errors


def test_a_user_error_is_one_panel_and_ends_with_2(capsys):
    assert code_of(DataError("no images", where="/data/x", expected="some", hint="look there")) == 2
    text = capsys.readouterr()
    assert text.out == ""
    for part in ("no images", "/data/x", "some", "look there"):
        assert part in text.err
    assert "Traceback" not in text.err


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 8.00 GiB"), torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")]
)
def test_exhausted_memory_that_nobody_foresaw_is_no_defect(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert code_of(error) == 2
    text = capsys.readouterr()
    assert text.out == ""
    for part in ("The memory is exhausted", str(error), "--device"):
        assert part in text.err


def test_brackets_in_a_message_are_not_markup(capsys):
    code_of(DataError("a [red]name[/red] [x", where="[a].jpg"))
    text = capsys.readouterr().err
    assert "a [red]name[/red] [x" in text
    assert "[a].jpg" in text


def test_rejected_inputs_are_listed_and_end_with_3(capsys):
    rejected = [Rejected(f"{number}.jpg", "truncated") for number in range(30)]
    assert code_of(RejectedInputs("masks", rejected, total=100)) == 3
    text = capsys.readouterr().err
    assert "30 of 100" in text
    assert "19.jpg" in text
    assert "20.jpg" not in text
    assert "and 10 more" in text


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(capsys):
    assert code_of(KeyboardInterrupt()) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_full_disk_is_a_panel(capsys):
    assert code_of(OSError(errno.ENOSPC, "No space left on device", "/data/out.h5")) == 2
    assert "/data/out.h5" in capsys.readouterr().err


def test_other_errors_of_ours_keep_their_code(capsys):
    assert code_of(SgsfaError("inside")) == 1


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "I/O error"), BrokenPipeError()])
def test_defects_pass(error):
    with pytest.raises(type(error)), console.guard():
        raise error


# Results


@dataclasses.dataclass
class Result:
    path: Path
    scores: np.ndarray
    best: float
    names: tuple[str, ...] = ()


def test_json_is_all_that_goes_to_standard_output(capsys):
    result = Result(Path("a/b"), np.array([0.5, np.nan]), float("inf"), ("ü",))
    console.emit(result, json=True, draw=lambda: "not this")
    text = capsys.readouterr()
    assert json.loads(text.out) == {"path": "a/b", "scores": [0.5, None], "best": None, "names": ["ü"]}
    assert text.err == ""


def test_without_json_the_drawing_is_printed(capsys):
    console.emit({}, json=False, draw=lambda: console.table("A", "B>", rows=[("[x]", 1)], title="T"))
    text = capsys.readouterr().out
    assert "[x]" in text
    assert "B>" not in text


def test_what_json_cannot_hold_is_a_defect():
    with pytest.raises(TypeError, match="no form in JSON"):
        console.plain(object())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (4100, "4.1 kB"), (3.1e6, "3.1 MB"), (2e9, "2.0 GB"), (5e12, "5.0 TB")],
)
def test_sizes(count, text):
    assert console.size(count) == text


# Progress


def test_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.0)
    progress = console.progress()
    with progress.task("masks", total=40, done=10) as task:
        for _ in range(30):
            task.advance(1, loss=1.23456, part="head")
            time.sleep(0.005)
    progress.note("a note [x]")
    progress.warn("careful")
    text = capsys.readouterr().err
    assert "masks: 40/40 images" in text
    assert "loss 1.235" in text
    assert "part head" in text
    assert "left" in text
    assert "a note [x]" in text
    assert "warning: careful" in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_few_lines_for_fast_work(capsys):
    with console.progress().task("masks", total=10_000) as task:
        for _ in range(10_000):
            task.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failed_task_does_not_claim_its_end(capsys):
    with pytest.raises(RuntimeError), console.progress().task("masks", total=2):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_quiet_keeps_warnings_only(capsys):
    progress = console.progress(quiet=True)
    with progress.task("masks", total=2) as task:
        task.advance(2)
    progress.note("a note")
    progress.warn("careful")
    assert capsys.readouterr().err.strip() == "warning: careful"


def test_other_ranks_are_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert console.progress() is SILENT


def test_bars_on_a_terminal(terminal):
    progress = console.progress()
    with progress.task("run", total=None, unit="stages") as outer:
        outer.advance()
        with progress.task("training", total=100, done=50, unit="steps") as task:
            for _ in range(50):
                task.advance(1, loss=0.5)
                time.sleep(0.005)
            progress.note("halfway [x]")
    progress.note("after")
    text = terminal.getvalue()
    assert "training" in text
    assert "100/100 steps" in text
    assert "loss 0.5" in text
    assert "1 stages" in text
    assert "halfway [x]" in text
    assert text.rstrip().endswith("after")


def test_rates_do_not_count_what_an_earlier_run_did():
    count = console._Count("masks", total=1000, done=900, unit="images")
    assert count.rate is None
    assert count.left is None
    count.begun -= 10
    count.marks[0] = (count.marks[0][0] - 10, 900)
    count.advance(50, {})
    assert count.rate == pytest.approx(5, rel=0.05)
    assert count.left == pytest.approx(10, rel=0.05)


def test_slow_work_is_told_as_time_each():
    count = console._Count("training", total=10, done=0, unit="epochs")
    count.begun -= 60
    count.marks[0] = (count.marks[0][0] - 60, 0)
    count.advance(2, {})
    assert "30 s each" in count.details()
    assert "4 min 00 s left" in count.details()


def test_bars_of_work_within_other_work_do_not_pile_up(terminal):
    """An evaluation within a training draws two of them each time."""
    progress = console._Terminal()
    with progress.task("train", total=10) as task:
        for _ in range(5):
            with progress.task("test", total=3) as inner:
                inner.advance(3)
            task.advance(2)
        assert [bar.description for bar in progress.bars.tasks] == ["train"]
    assert progress.bars is None

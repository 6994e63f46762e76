import dataclasses
import io
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.runtime.progress import SILENT
from sgsfa_cli import console
from sgsfa_cli import progress as bars

LOG = logging.getLogger("sgsfa.test")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 100 columns wide in place of standard error."""
    text = io.StringIO()
    made = Console(file=text, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(console, "err", lambda: made)
    console.begin()
    return text


@pytest.fixture
def lines(monkeypatch):
    """Standard error that is no terminal, with a line for each step."""
    monkeypatch.setattr(bars, "_LINE_SECONDS", 0.0)
    console.begin()


def test_notes__name_configuration_keys_by_the_commands_options(capsys):
    console.begin({"options": ["--amp", "--set"]})
    LOG.info("extract.amp=bf16 may be faster, extract.flip=false too")
    assert "--amp bf16 may be faster, --set extract.flip=false too" in capsys.readouterr().err


# Results


@dataclasses.dataclass
class Result:
    path: Path
    scores: np.ndarray
    best: float
    names: tuple[str, ...] = ()


def test_emit__json_is_all_that_goes_to_standard_output(capsys):
    result = Result(Path("a/b"), np.array([0.5, np.nan]), float("inf"), ("ü",))
    console.begin(json=True)
    console.emit(result, lambda: ["not this"])
    text = capsys.readouterr()
    assert json.loads(text.out) == {"path": "a/b", "scores": [0.5, None], "best": None, "names": ["ü"]}
    assert text.err == ""


def test_emit__without_json_draws(capsys):
    console.begin()
    console.emit({}, lambda: [console.table("A", "B>", rows=[("[x]", 1)], title="T")])
    text = capsys.readouterr().out
    assert "[x]" in text
    assert "B>" not in text


def test_plain__rejects_what_json_cannot_hold():
    with pytest.raises(Exception, match="object"):
        console.plain(object())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (4100, "4.1 kB"), (3.1e6, "3.1 MB"), (2e9, "2.0 GB"), (5e12, "5.0 TB")],
)
def test_size(count, text):
    assert console.size(count) == text


# Log


def test_log__notes_and_warnings_go_to_standard_error(capsys):
    console.begin()
    LOG.debug("detail")
    LOG.info("a note [x]")
    LOG.warning("careful")
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.splitlines() == ["a note [x]", "warning: careful"]


def test_log__quiet_keeps_warnings_and_shows_no_progress(capsys):
    console.begin()
    console.use(json=False, quiet=True)
    with console.progress().task("masks", total=2) as task:
        task.advance(2)
    LOG.info("a note")
    LOG.warning("careful")
    assert capsys.readouterr().err.strip() == "warning: careful"


def test_log__other_ranks_report_errors_only(monkeypatch, capsys):
    launch = {
        "RANK": 1,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 1,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    console.begin()
    assert console.progress() is SILENT
    LOG.warning("careful")
    assert capsys.readouterr().err == ""


# Progress


def test_progress__lines_without_a_terminal(lines, capsys):
    with console.progress().task("masks", total=40, done=10) as task:
        for _ in range(30):
            task.advance(1, loss=1.23456, part="head")
            time.sleep(0.005)
    LOG.info("a note")
    text = capsys.readouterr().err
    assert "masks: 40/40 images" in text
    for word in ("loss 1.235", "part head", "left", "a note"):
        assert word in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_progress__few_lines_for_fast_work(capsys):
    console.begin()
    with console.progress().task("masks", total=10_000) as task:
        for _ in range(10_000):
            task.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_progress__no_summary_of_failed_or_empty_work(capsys):
    console.begin()
    with pytest.raises(RuntimeError), console.progress().task("masks", total=2):
        raise RuntimeError
    with console.progress().task("masks", total=40, done=40):
        pass
    assert capsys.readouterr().err == ""


def test_progress__bars_on_a_terminal(terminal):
    progress = console.progress()
    with progress.task("run", total=None, unit="stages") as outer:
        outer.advance()
        with progress.task("training", total=100, done=50, unit="steps") as task:
            for _ in range(50):
                task.advance(1, loss=0.5)
                time.sleep(0.005)
            LOG.info("halfway [x]")
        assert [bar.description for bar in progress.bars.tasks] == ["run"], "bars of finished work do not pile up"
    LOG.info("after")
    text = terminal.getvalue()
    for word in ("training", "100/100 steps", "loss 0.5", "1 stages", "halfway [x]"):
        assert word in text
    assert text.rstrip().endswith("after")


def test_progress__rates_do_not_count_what_an_earlier_run_did(capsys):
    console.begin()
    progress = console.progress()
    now = [0.0]
    progress.bars.get_time = lambda: now[0]
    with progress.task("masks", total=1000, done=900) as task:
        for _ in range(10):
            now[0] += 1
            task.advance(5)
        assert task.task.speed == pytest.approx(5)
        assert "5.0/s" in bars.details(task.task)
        assert "10 s left" in bars.details(task.task)
    assert "50 in" not in capsys.readouterr().err


def test_progress__slow_work_is_shown_as_time_each(capsys):
    console.begin()
    progress = console.progress()
    now = [0.0]
    progress.bars.get_time = lambda: now[0]
    with progress.task("training", total=10, unit="epochs") as task:
        for _ in range(3):
            now[0] += 20
            task.advance()
        assert "20 s each" in bars.details(task.task)

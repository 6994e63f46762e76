import json

import pytest
from typer.testing import CliRunner

from pipeline.stages import plan, run
from sgsfa_cli.main import app
from tests.helpers.stages import FakeStages, write_dataset


@pytest.fixture
def fakes():
    return FakeStages()


@pytest.fixture
def folder(tmp_path, monkeypatch, fakes):
    """A working folder with a data set and a configuration, and fake stages."""
    for function in (plan.make_plan, run.run_stages):
        monkeypatch.setitem(function.__kwdefaults__, "stages", fakes.stages)
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path)
    (tmp_path / "parser.onnx").write_bytes(b"1")
    text = 'name = "mine"\n[data]\nsource = "csv:people.csv"\n[train]\nidentities = 2\n'
    text += '[masks]\nparser = "onnx:parser.onnx"\n'
    (tmp_path / "sgsfa.toml").write_text(text)
    return tmp_path


@pytest.fixture
def sgsfa(folder):
    """Call the program in the folder; returns the result, whose exit code must be `code`."""
    runner = CliRunner(env={"COLUMNS": "200"})

    def call(*arguments, code=0, **options):
        result = runner.invoke(app, arguments, **options)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def sgsfa_json(sgsfa):
    """Call the program with --json; returns the object that it printed."""

    def call(*arguments, code=0, **options):
        found = json.loads(sgsfa(*arguments, "--json", code=code, **options).stdout)
        assert isinstance(found, dict), "--json prints one object"
        return found

    return call

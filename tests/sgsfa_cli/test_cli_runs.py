"""run, status, init and artifacts, with stages that only write down that they ran."""

import dataclasses
import json
import tomllib

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.config import load_config
from pipeline.errors import ConfigError, Rejected
from pipeline.runtime.files import write_json
from pipeline.stages import execute, graph, status
from pipeline.stages.stage import StageReport
from sgsfa_cli.main import app
from sgsfa_cli.options import overriding

RESULT = {
    "columns": ["Test set", "Method", "Rank-1>"],
    "rows": [["people", "shrunk rule", "75.0 %"], ["people", "colour histogram", "12.5 %"]],
    "tests": {"people": {"metrics": {"mAP": 0.5}}},
}


@pytest.fixture
def rejected():
    return []


@pytest.fixture
def folder(tmp_path, monkeypatch, rejected):
    """A working folder with a data set and a configuration, and fake stages."""

    def body(name):
        def build(context):
            (context.out / "made.txt").write_text(name)
            if name == "eval":
                write_json(context.out / "result.json", RESULT)
            return StageReport(total=2, rejected=tuple(rejected) if name == "masks" else ())

        return build

    fakes = tuple(dataclasses.replace(stage, build=body(stage.name)) for stage in graph.STAGES)
    monkeypatch.setattr(execute.execute, "__kwdefaults__", {**execute.execute.__kwdefaults__, "stages": fakes})
    monkeypatch.setattr(status.status, "__kwdefaults__", {**status.status.__kwdefaults__, "stages": fakes})
    monkeypatch.chdir(tmp_path)
    rows = ["path,pid,camid,split"]
    for number, split in enumerate(("train", "train", "query", "gallery")):
        cv2.imwrite(f"{number}.png", np.full((32, 16, 3), number, np.uint8))
        rows.append(f"{number}.png,{min(number, 2)},{number % 2 + 1},{split}")
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "parser.onnx").write_bytes(b"1")
    text = 'name = "mine"\n[data]\nsource = "csv:people.csv"\n[train]\nidentities = 2\n'
    text += '[masks]\nparser = "onnx:parser.onnx"\n'
    (tmp_path / "sgsfa.toml").write_text(text)
    return tmp_path


@pytest.fixture
def sgsfa(folder):
    runner = CliRunner(env={"COLUMNS": "200"})

    def call(*arguments, code=0, **options):
        result = runner.invoke(app, arguments, **options)
        assert result.exit_code == code, result.output
        return result

    return call


def data(result):
    found = json.loads(result.stdout)
    assert isinstance(found, dict), "--json prints one object"
    return found


# run


def test_run_does_what_is_missing_and_tells_where_it_lies(sgsfa):
    text = sgsfa("run").stdout
    for word in ("masks", "train", "extract", "eval", "artifacts/eval/mine-", "75.0 %", "12.5 %", "colour histogram"):
        assert word in text
    assert "Finished in" in text
    assert "Nothing to do" in sgsfa("run").stdout


def test_run_as_json(sgsfa):
    report = data(sgsfa("run", "--json"))
    assert report["idle"] is False
    assert [stage["action"] for stage in report["stages"]] == ["ran"] * 4
    assert report["results"]["tests"]["people"]["metrics"]["mAP"] == 0.5
    assert data(sgsfa("run", "--json"))["idle"] is True


def test_a_dry_run_refuses_what_a_run_refuses(sgsfa):
    for words in (("run", "--from", "eval"), ("run", "--from", "eval", "--dry-run")):
        assert "the run is to begin at eval, but masks is missing" in sgsfa(*words, code=2).stderr


def test_a_dry_run_asks_for_images_as_a_run_does(sgsfa, folder):
    table = folder / "people.csv"
    table.write_text(table.read_text().replace("query", "gallery"))
    for words in (("run",), ("run", "--dry-run")):
        assert "no query images" in sgsfa(*words, code=2).stderr
    assert "would run" in sgsfa("run", "--dry-run", "--until", "train").stdout


def test_eval_ends_with_3_where_inputs_were_rejected(sgsfa, rejected, monkeypatch):
    rejected.append(Rejected("3.png", "truncated"))
    real = execute.execute.__kwdefaults__["stages"]
    stages = tuple(
        dataclasses.replace(stage, build=lambda context: StageReport(total=2, rejected=tuple(rejected)))
        if stage.name == "extract"
        else dataclasses.replace(stage, build=lambda context, stage=stage: _accepted(stage.build(context)))
        for stage in real
    )
    monkeypatch.setattr(execute.execute, "__kwdefaults__", {**execute.execute.__kwdefaults__, "stages": stages})
    monkeypatch.setattr("sgsfa_cli.commands.eval._draw", lambda *_: "drawn")
    monkeypatch.setattr("pipeline.evaluation.compare_runs.find_tables", lambda _: {})
    for _ in range(2):
        result = sgsfa("eval", code=3)
        assert "drawn" in result.stdout
        assert "3.png" in result.stderr


def _accepted(report):
    return dataclasses.replace(report, rejected=())


def test_a_dry_run_tells_and_does_nothing(sgsfa, folder):
    plan = data(sgsfa("run", "--dry-run", "--json"))
    assert [stage["would_run"] for stage in plan["stages"]] == [True] * 4
    assert not list((folder / "artifacts").glob("[a-z]*"))  # but the remembered hashes
    sgsfa("run")
    changed = ("--set", "matching.rule=mean", "--dry-run")
    plan = data(sgsfa("run", *changed, "--json"))
    assert [stage["stage"] for stage in plan["stages"] if stage["would_run"]] == ["eval"]
    text = sgsfa("run", *changed).stdout
    assert "would run" in text
    assert "matching.rule: 'shrunk' -> 'mean'" in text
    plan = data(sgsfa("run", "--force", "--from", "extract", "--dry-run", "--json"))
    assert [stage["stage"] for stage in plan["stages"] if stage["would_run"]] == ["extract", "eval"]


@pytest.mark.parametrize("words", [("run",), ("train",), ("extract",), ("eval",), ("masks", "build")])
def test_work_on_defaults_alone_says_that_nothing_was_configured(sgsfa, folder, monkeypatch, words):
    def begun(*_, **__):
        raise ConfigError("begun")

    monkeypatch.setattr(execute, "execute", begun)
    assert "there is no sgsfa.toml here" not in sgsfa(*words, code=2).stderr
    (folder / "sgsfa.toml").unlink()
    text = " ".join(sgsfa(*words, code=2).stderr.split())
    assert "the people are rendered" in text
    assert "begun" in text
    assert "there is no sgsfa.toml" not in sgsfa(*words, "--preset", "demo", code=2).stderr


def test_verify_sends_nobody_to_delete_a_folder_of_photographs(sgsfa, folder):
    (folder / "photos").mkdir()
    for name, found in (("photos", "no artifact"), ("nowhere", "no such folder")):
        text = sgsfa("artifacts", "verify", name, code=2).stderr
        assert found in text
        assert "delete" not in text


def test_run_refuses_stages_that_are_none(sgsfa):
    assert "did you mean 'train'?" in sgsfa("run", "--from", "trian", code=2).stderr


def test_rejected_masks_are_listed_and_end_with_3(sgsfa, rejected):
    rejected.append(Rejected("0.png", "truncated after 13 bytes"))
    report = data(sgsfa("run", "--json", code=3))
    assert [stage["stage"] for stage in report["stages"]] == ["masks"]
    assert report["stages"][0]["rejected"][0]["path"] == "0.png"
    assert data(sgsfa("masks", "build", "--json", code=3))["file"].endswith("masks.h5")
    assert "Stopped after masks" in sgsfa("run", code=3).stdout
    text = sgsfa("run", code=3).stderr
    assert "0.png" in text
    assert "truncated after 13 bytes" in text
    assert "masks.allow_failed=true" in text
    assert "1 of 2" in sgsfa("run", "--set", "masks.allow_failed=true").stdout


def test_bad_input_is_one_panel_and_2(sgsfa, folder):
    for arguments, part in (
        (("--set", "train.epoch=3"), "did you mean 'train.epochs'?"),
        (("--set", "data.source=csv:nowhere.csv"), "nowhere.csv"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--preset", "dmo"), "did you mean 'demo'?"),
        (("--set", "artifacts=people.csv"), "people.csv"),
    ):
        result = sgsfa("run", *arguments, code=2)
        assert part in result.stderr
        assert "Traceback" not in result.output


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(sgsfa, monkeypatch):
    kept = execute.execute.__kwdefaults__["stages"]

    def stop(context):
        (context.out / "half").write_text("1")
        raise KeyboardInterrupt

    stages = tuple(dataclasses.replace(stage, build=stop) if stage.name == "train" else stage for stage in kept)
    monkeypatch.setitem(execute.execute.__kwdefaults__, "stages", stages)
    assert "the same command goes on" in sgsfa("run", code=130).stderr
    monkeypatch.setitem(execute.execute.__kwdefaults__, "stages", kept)
    states = {state["stage"]: state["state"] for state in data(sgsfa("status", "--json"))["stages"]}
    assert states == {"masks": "fresh", "train": "partial", "extract": "missing", "eval": "missing"}
    assert "resumed and done" in sgsfa("run").stdout


# status


def test_status_tells_states_and_reasons(sgsfa):
    assert sgsfa("status").stdout.count("missing") == 4
    sgsfa("run")
    assert sgsfa("status").stdout.count("fresh") == 4
    text = sgsfa("status", "--set", "train.epochs=9").stdout
    assert "train.epochs: 120 -> 9" in text
    assert "stale" in text


# init


def test_init_writes_every_key_with_its_meaning(sgsfa, folder):
    sgsfa("init", "new.toml", "--preset", "strong", "--set", "name=other")
    text = (folder / "new.toml").read_text()
    assert "# lambda of eq. 11" in text
    assert tomllib.loads(text)["name"] == "other"
    assert load_config(folder / "new.toml") == load_config(preset="strong", overrides=["name=other"])


def test_init_does_not_overwrite(sgsfa, folder):
    before = (folder / "sgsfa.toml").read_text()
    assert "--force" in sgsfa("init", code=2).stderr
    assert (folder / "sgsfa.toml").read_text() == before
    sgsfa("init", "--force")
    assert load_config(folder / "sgsfa.toml") == load_config()


def test_options_become_overrides_that_read_back():
    text = 'a "b" \\ \u00e9 \U0001f600 \x7f \t'
    (override,) = overriding({"parser": text, "grouping": None}, "masks")
    assert load_config(overrides=[override]).masks.parser == text


# artifacts


def test_artifacts_are_listed(sgsfa):
    assert "There is nothing" in sgsfa("artifacts", "list").stdout
    sgsfa("run")
    found = data(sgsfa("artifacts", "list", "--json"))["artifacts"]
    assert {artifact["stage"] for artifact in found} == {"masks", "train", "extract", "eval"}
    assert all(artifact["state"] == "fresh" and len(artifact["fingerprint"]) == 64 for artifact in found)
    assert "mine" in sgsfa("artifacts", "list").stdout


def test_artifacts_are_verified(sgsfa, folder):
    sgsfa("artifacts", "verify", code=2)
    sgsfa("run")
    assert sgsfa("artifacts", "verify").stdout.count("as published") == 4
    broken = next((folder / "artifacts" / "train").iterdir())
    (broken / "made.txt").write_text("trein")
    result = sgsfa("artifacts", "verify", code=3)
    assert "made.txt has been changed" in result.stdout
    sound = next((folder / "artifacts" / "masks").iterdir())
    assert data(sgsfa("artifacts", "verify", str(sound), "--json"))["artifacts"][0]["sound"] is True
    sgsfa("artifacts", "verify", "people", code=2)


def test_prune_asks_and_keeps_what_is_used(sgsfa, folder):
    sgsfa("run", "--set", "train.epochs=3")
    sgsfa("run")
    assert len(data(sgsfa("artifacts", "list", "--json"))["artifacts"]) == 7
    assert "Would be removed" in sgsfa("artifacts", "prune", "--dry-run").stdout
    assert "Nothing was removed" in sgsfa("artifacts", "prune", input="n\n").stdout
    assert len(data(sgsfa("artifacts", "list", "--json"))["artifacts"]) == 7
    for how in ((), ("--json",)):
        assert "nobody answers" in sgsfa("artifacts", "prune", *how, input="", code=2).stderr
    report = data(sgsfa("artifacts", "prune", "--yes", "--json"))
    assert report["removed"] is True
    assert len(report["removals"]) == 3
    assert "Nothing to do" in sgsfa("run").stdout
    assert "nothing to remove" in sgsfa("artifacts", "prune").stdout


def test_prune_wants_to_know_what_to_keep(sgsfa, folder):
    sgsfa("run")
    (folder / "sgsfa.toml").rename(folder / "mine.toml")
    assert "nothing says which artifacts to keep" in sgsfa("artifacts", "prune", "--yes", code=2).stderr
    text = sgsfa("artifacts", "prune", "-c", "mine.toml", "--set", "train.epochs=3", input="n\n").stdout
    assert "Kept: what mine.toml, --set train.epochs=3 uses (run 'mine')" in text


def test_broken_artifacts_are_listed_verified_and_pruned(sgsfa, folder):
    sgsfa("run")
    broken = next((folder / "artifacts" / "train").iterdir())
    (broken / "manifest.json").write_text("{")
    assert {found["stage"]: found["state"] for found in data(sgsfa("artifacts", "list", "--json"))["artifacts"]}[
        "train"
    ] == "broken"
    assert "manifest cannot be read" in sgsfa("artifacts", "verify", code=3).stdout
    sgsfa("artifacts", "verify", str(broken), code=3)
    assert "broken" in sgsfa("status").stdout
    sgsfa("artifacts", "prune", "--yes")
    assert not broken.exists()
    assert "Finished" in sgsfa("run").stdout


def test_prune_leaves_other_runs_alone_unless_told(sgsfa, folder):
    sgsfa("run", "--set", "name=theirs")
    (folder / "sgsfa.toml").write_text((folder / "sgsfa.toml").read_text() + "flip = true\n")
    sgsfa("run")
    assert "nothing to remove" in sgsfa("artifacts", "prune", "--yes").stdout
    assert len(data(sgsfa("artifacts", "prune", "--all-runs", "--yes", "--json"))["removals"]) == 4

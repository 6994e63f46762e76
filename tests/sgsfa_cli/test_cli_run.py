"""`sgsfa run`, with stages that only record that they ran."""

import pytest

from pipeline.errors import ConfigError, Rejected
from pipeline.stages.stage import StageReport
from tests.helpers.stages import RESULTS

ALL = ["masks", "train", "extract", "eval"]


def test_run__draws_stages_and_metrics(sgsfa):
    text = sgsfa("run").stdout
    for word in (*ALL, "artifacts/eval/mine-", "75.0", "12.5", "colour histogram"):
        assert word in text
    assert "Finished in" in text
    assert "up to date" in sgsfa("run").stdout


def test_run__as_json(sgsfa_json):
    report = sgsfa_json("run")
    assert report["idle"] is False
    assert [stage["action"] for stage in report["stages"]] == ["ran"] * 4
    assert report["results"] == RESULTS
    assert sgsfa_json("run")["idle"] is True


def test_dry_run__shows_plan_and_checks_and_runs_nothing(sgsfa, sgsfa_json, fakes, folder):
    plan = sgsfa_json("run", "--dry-run")
    assert [stage["would_run"] for stage in plan["stages"]] == [True] * 4
    checks = {(check["stage"], check["check"]): check for check in plan["checks"]}
    assert checks["masks", "training images"]["result"] == "4 of 2 identities"
    assert checks["all", "disk space"]["ok"] is True
    assert not list((folder / "artifacts").glob("[a-z]*")), "only the cache of hashes is written"
    assert fakes.took() == []
    sgsfa("run")
    changed = ("--set", "matching.rule=mean", "--dry-run")
    plan = sgsfa_json("run", *changed)
    assert [stage["stage"] for stage in plan["stages"] if stage["would_run"]] == ["eval"]
    text = sgsfa("run", *changed).stdout
    assert "would run" in text
    assert "matching.rule" in text
    plan = sgsfa_json("run", "--force", "--from", "extract", "--dry-run")
    assert [stage["stage"] for stage in plan["stages"] if stage["would_run"]] == ["extract", "eval"]


def test_dry_run__fails_as_the_run_would(sgsfa, sgsfa_json, folder):
    for words in (("run", "--from", "eval"), ("run", "--from", "eval", "--dry-run")):
        assert "masks is missing" in sgsfa(*words, code=2).stderr
    table = folder / "people.csv"
    table.write_text(table.read_text().replace("query", "gallery"))
    for words in (("run",), ("run", "--dry-run")):
        assert "no query images" in sgsfa(*words, code=2).stderr
        assert "no query images" in sgsfa_json(*words, code=2)["error"]["message"]
    assert "failed" in sgsfa("run", "--dry-run", code=2).stdout
    assert "would run" in sgsfa("run", "--dry-run", "--until", "train").stdout


@pytest.mark.parametrize("words", [("run",), ("train",), ("extract",), ("eval",), ("masks", "build")])
def test_defaults__warn_that_nothing_was_configured(sgsfa, folder, monkeypatch, words):
    def begun(*_, **__):
        raise ConfigError("begun")

    monkeypatch.setattr("pipeline.stages.run.run_stages", begun)
    assert "no sgsfa.toml here" not in sgsfa(*words, code=2).stderr
    (folder / "sgsfa.toml").unlink()
    text = " ".join(sgsfa(*words, code=2).stderr.split())
    assert "rendered images" in text
    assert "begun" in text
    assert "no sgsfa.toml here" not in sgsfa(*words, "--preset", "demo", code=2).stderr


def test_run__suggests_the_stage_that_was_meant(sgsfa):
    assert "'train'" in sgsfa("run", "--from", "trian", code=2).stderr


def test_rejected_masks__are_listed_and_end_with_3(sgsfa, sgsfa_json, fakes):
    fakes.rejected = (Rejected("images/1_c1.png", "truncated after 13 bytes"),)
    report = sgsfa_json("run", code=3)
    assert [stage["stage"] for stage in report["stages"]] == ["masks"]
    assert report["stages"][0]["rejected"][0]["path"] == "images/1_c1.png"
    assert sgsfa_json("masks", "build", code=3)["file"].endswith("masks.h5")
    result = sgsfa("run", code=3)
    assert "Stopped after masks" in result.stdout
    for word in ("images/1_c1.png", "truncated after 13 bytes", "--set masks.allow_failed=true"):
        assert word in result.stderr
    assert "1 of 4" in sgsfa("run", "--set", "masks.allow_failed=true").stdout


def test_rejected_features__let_eval_end_with_3(sgsfa, fakes, monkeypatch):
    rejected = (Rejected("images/3_c1.png", "truncated"),)
    fakes.work["extract"] = lambda stage, folder: StageReport(total=2, rejected=rejected)
    monkeypatch.setattr("sgsfa_cli.commands.eval._draw", lambda *_: ["drawn"])
    monkeypatch.setattr("pipeline.evaluation.comparison.load_queries", lambda _: {})
    for _ in range(2):
        result = sgsfa("eval", code=3)
        assert "drawn" in result.stdout
        assert "images/3_c1.png" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--set", "train.epoch=3"), "train.epochs"),
        (("--set", "data.source=csv:nowhere.csv"), "nowhere.csv"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--preset", "dmo"), "'demo'"),
        (("--set", "artifacts=people.csv"), "people.csv"),
    ],
)
def test_invalid_input__is_one_panel_and_2(sgsfa, sgsfa_json, arguments, part):
    result = sgsfa("run", *arguments, code=2)
    assert part in result.stderr
    assert "Traceback" not in result.output
    error = sgsfa_json("run", *arguments, code=2)["error"]
    assert set(error) >= {"message", "where", "expected", "hint", "exit_code"}
    assert error["exit_code"] == 2
    assert part in " ".join(str(value) for value in error.values())


def test_ctrl_c__ends_with_130_and_the_next_run_resumes(sgsfa, sgsfa_json, fakes):
    def stop(stage, folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    fakes.work["train"] = stop
    assert "resume" in sgsfa("run", code=130).stderr
    assert sgsfa_json("run", code=130)["error"]["exit_code"] == 130
    fakes.work.clear()
    states = {state["stage"]: state["state"] for state in sgsfa_json("status")["stages"]}
    assert states == {"masks": "up to date", "train": "incomplete", "extract": "missing", "eval": "missing"}
    assert "resumed and finished" in sgsfa("run").stdout

import subprocess
import sys

import pytest

from pipeline.config_file import load_config
from pipeline.errors import ArtifactError, ConfigError, DataError, UserError
from pipeline.stages.plan import STAGE_NAMES, STAGES, failures, make_plan, required_stages
from pipeline.stages.sources import Sources
from pipeline.stages.stage import CheckResult, StageReport

ALL = ["masks", "train", "extract", "eval"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["synth", *ALL]),
        (["data.source=csv:a.csv"], ALL),
        (["data.source=csv:a.csv", "masks.file=m.h5"], ["train", "extract", "eval"]),
        (["data.source=csv:a.csv", "model.kind=baseline"], ["train", "extract", "eval"]),
        (["extract.checkpoint=m.safetensors"], ["synth", "extract", "eval"]),
        (["data.source=csv:a.csv", "extract.checkpoint=m.safetensors"], ["extract", "eval"]),
        (["data.tests=['csv:a.csv']", "extract.checkpoint=m.safetensors"], ["extract", "eval"]),
        (["data.source=csv:a.csv", "data.tests=['rendered']"], ["synth", *ALL]),
        (["matching.features=f.h5"], ["eval"]),
    ],
)
def test_required_stages__follow_from_the_configuration(overrides, names):
    config = load_config(overrides=overrides)
    stages = [kind(config, Sources(config)) for kind in STAGES]
    assert [stage.name for stage in required_stages(stages)] == names


def test_make_plan__of_rendered_images_reads_nothing_and_writes_nothing(tmp_path, weights):
    config = load_config(overrides=[f"artifacts={tmp_path / 'a'}", f"masks.parser=onnx:{weights}"])
    plan = make_plan(config)
    assert tuple(entry.name for entry in plan.stages) == STAGE_NAMES
    assert plan.stages[2].stage.requires() == ("synth", "masks")
    assert {entry.state for entry in plan.stages} == {"missing"}
    assert not (tmp_path / "a").exists()


def test_make_plan__selects_a_range_and_what_would_run(configure, run):
    run(configure())
    plan = make_plan(configure("extract.flip=true"), until="extract")
    assert [entry.name for entry in plan.selected] == ["masks", "train", "extract"]
    assert [entry.name for entry in plan.pending] == ["extract"]
    forced = make_plan(configure(), from_stage="train", until="train", force=True)
    assert [entry.name for entry in forced.pending] == ["train"]


def test_make_plan__start_needs_the_stages_before(configure, run):
    with pytest.raises(ArtifactError, match="masks is missing"):
        make_plan(configure(), from_stage="train")
    run(configure(), until="masks")
    assert [entry.name for entry in make_plan(configure(), from_stage="train").pending] == ["train", "extract", "eval"]


@pytest.mark.parametrize(
    ("selection", "message", "hint"),
    [
        ({"from_stage": "trian"}, "unknown stage 'trian'", "did you mean 'train'?"),
        ({"until": "synth"}, "'synth' is not part of this run", None),
        ({"from_stage": "eval", "until": "masks"}, "masks comes before eval", None),
    ],
)
def test_make_plan__rejects_ranges_that_do_not_exist(configure, selection, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(configure(), **selection)
    assert caught.value.hint == hint


def test_state__names_what_differs_from_the_previous_artifact(configure, run, states):
    run(configure())
    finished = states(configure())
    assert {entry.state for entry in finished.values()} == {"up to date"}
    assert all(entry.manifest.size > 0 and entry.manifest.finished for entry in finished.values())
    changed = states(configure("train.epochs=3", "matching.rule=sum"))
    assert changed["masks"].state == "up to date"
    assert changed["train"].state == "stale"
    assert changed["train"].path == finished["train"].path
    assert changed["train"].reasons == ("train.epochs changed from 120 to 3",)
    assert [reason.split()[0] for reason in changed["eval"].reasons] == ["input", "matching.rule"]
    assert "input checkpoint" in changed["extract"].reasons[0]


def test_state__names_inputs_that_are_new_or_gone(configure, run, states, tmp_path):
    run(configure())
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1")
    assert any(
        "input weights is new" in reason for reason in states(configure(f"model.weights={path}"))["train"].reasons
    )
    run(configure(f"model.weights={path}"))
    assert any("input weights is gone" in reason for reason in states(configure("train.epochs=2"))["train"].reasons)


def test_state__upstream_rebuilt_with_another_result_makes_downstream_stale(configure, run, fakes, states):
    run(configure())
    assert run(configure(), from_stage="train", until="train", force=True)[0] == ["train"]
    assert states(configure())["extract"].state == "up to date", "the rebuilt files are equal"
    fakes.work["train"] = write_other
    run(configure(), from_stage="train", until="train", force=True)
    after = states(configure())
    assert [after[name].state for name in ALL] == ["up to date", "up to date", "stale", "stale"]
    assert "train was rebuilt" in after["extract"].reasons[0]
    assert after["eval"].reasons == ("extract is stale",)
    with pytest.raises(ArtifactError, match="train was rebuilt"):
        make_plan(configure(), from_stage="eval")


def write_other(stage, folder):
    (folder / "made.txt").write_text("other")
    return StageReport()


def test_check__reports_every_problem_at_once(configure, people):
    people.write_text(people.read_text().replace(",2,gallery", ",1,gallery"))
    plan = make_plan(configure("train.identities=3", "train.amp=fp16", "train.device=cpu", "model.weights=none"))
    failed = {(result.stage, result.what) for result in plan.check() if result.error is not None}
    assert {("masks", "parser"), ("train", "device"), ("train", "batches"), ("eval", "matches people")} <= failed
    passed = {result.what: result.detail for result in plan.check() if result.error is None}
    assert passed["training images"] == "4 of 2 identities"
    error = failures(plan.check())
    assert error is not None
    assert error.exit_code == 2
    assert "batch needs 3" in error.message


def test_check__disk_space_covers_all_stages(configure, monkeypatch, run, fakes):
    import shutil

    monkeypatch.setattr("pipeline.stages.checks.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(ArtifactError, match="not enough disk space"):
        run(configure())
    assert fakes.took() == []


def test_check__stages_that_are_up_to_date_are_not_checked(configure, run, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    run(configure("train.device=cpu"))
    assert make_plan(configure("train.device=cuda")).check() == []


def test_failures__one_error_as_it_is_and_several_as_a_list():
    first, second = DataError("first", where="a", hint="h"), DataError("second")
    assert failures([CheckResult("s", "w")]) is None
    assert failures([CheckResult("s", "w", error=first), CheckResult("t", "w", error=first)]) is first
    both = failures([CheckResult("s", "w", error=first), CheckResult("t", "w", error=second)])
    assert isinstance(both, UserError)
    assert both.message.splitlines()[1:] == ["- first (a); h", "- second"]


def test_plan__imports_nothing_heavy():
    code = "import sys, pipeline.stages.run; print(*{'torch', 'cv2', 'matplotlib', 'numba'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import load_config
from pipeline.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FormatError,
    LockedError,
    RejectedInputs,
    UserError,
    WeightsError,
)
from pipeline.formats import masks as maskfile
from pipeline.formats.masks import DONE, PENDING, MaskMeta, MaskWriter
from pipeline.parsing import versions
from pipeline.runtime.files import read_json, write_json
from pipeline.stages import bodies, graph
from pipeline.stages.execute import execute, stage_range
from pipeline.stages.graph import STAGE_NAMES, needed
from pipeline.stages.plan import plan
from pipeline.stages.sources import Sources
from pipeline.stages.stage import StageContext, StageReport
from pipeline.stages.status import status
from pipeline.store.store import ArtifactStore

ALL = ["masks", "train", "extract", "eval"]


@pytest.fixture
def run(fakes):
    def go(config, **options):
        report = execute(config, stages=fakes.stages, **options)
        return fakes.took(), report

    return go


# Which stages


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ([], ("synth", "masks", "train", "extract", "eval")),
        (["data.source=csv:a.csv"], ("masks", "train", "extract", "eval")),
        (["data.source=csv:a.csv", "masks.file=m.h5"], ("train", "extract", "eval")),
        (["data.source=csv:a.csv", "model.kind=baseline"], ("train", "extract", "eval")),
        (["extract.checkpoint=m.safetensors"], ("synth", "extract", "eval")),
        (["data.source=csv:a.csv", "extract.checkpoint=m.safetensors"], ("extract", "eval")),
        (["data.tests=['csv:a.csv']", "extract.checkpoint=m.safetensors"], ("extract", "eval")),
        (["data.source=csv:a.csv", "data.tests=['rendered']"], ("synth", "masks", "train", "extract", "eval")),
        (["matching.features=f.h5"], ("eval",)),
    ],
)
def test_a_configuration_needs_these_stages(overrides, stages):
    assert needed(load_config(overrides=overrides)) == stages


def test_planning_rendered_people_reads_no_images_and_writes_nothing(tmp_path, weights):
    config = load_config(overrides=[f"artifacts={tmp_path / 'a'}", f"masks.parser=onnx:{weights}"])
    assert [entry.stage.name for entry in plan(config)] == list(STAGE_NAMES)
    assert not (tmp_path / "a").exists()


# What a change makes anew


def test_the_second_run_does_nothing(configure, run):
    ran, report = run(configure())
    assert ran == ALL
    assert not report.idle
    assert [outcome.action for outcome in report.stages] == ["ran"] * 4
    ran, again = run(configure())
    assert ran == []
    assert again.idle
    assert again.results == report.results == {"columns": ["mAP>"], "rows": [["40 %"]], "tests": {}}
    assert [outcome.path for outcome in again.stages] == [outcome.path for outcome in report.stages]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("matching.rule=mean", ["eval"]),
        ("extract.flip=true", ["extract", "eval"]),
        ("train.epochs=3", ["train", "extract", "eval"]),
        ("loss.balance=0.5", ["train", "extract", "eval"]),
        ("model.part_dim=64", ["train", "extract", "eval"]),
        ("masks.flip=true", ALL),
        ("masks.batch_size=3", []),
        ("train.device=cpu", []),
        ("masks.allow_failed=true", []),
        ("data.expect_counts=false", []),
        ("name=other", []),
    ],
)
def test_a_changed_key_makes_anew_what_depends_on_it(configure, run, override, expected):
    run(configure())
    ran, _ = run(configure(override))
    assert ran == expected
    ran, _ = run(configure())
    assert ran == []  # the old artifacts were left alone


def test_a_touched_but_equal_image_makes_nothing_anew(configure, run, people):
    run(configure())
    os.utime(people.parent / "images" / "1_c1.png")
    assert run(configure())[0] == []


def test_a_moved_data_set_makes_nothing_anew(configure, run, people, tmp_path):
    run(configure())
    shutil.move(people.parent, tmp_path / "moved")
    ran, _ = run(configure(f"data.source=csv:{tmp_path / 'moved' / people.name}"))
    assert ran == []


@pytest.mark.parametrize(
    ("image", "expected"), [("1_c1", ALL), ("3_c1", ["extract", "eval"]), ("4_c2", ["extract", "eval"])]
)
def test_a_changed_image_makes_anew_what_reads_it(configure, run, people, image, expected):
    run(configure())
    cv2.imwrite(str(people.parent / "images" / f"{image}.png"), np.zeros((32, 16, 3), np.uint8))
    assert run(configure())[0] == expected


def test_a_changed_identity_in_the_list_trains_anew_and_parses_nothing(configure, run, people):
    run(configure())
    people.write_text(people.read_text().replace("1_c1.png,1,", "1_c1.png,2,"))
    assert run(configure())[0] == ["train", "extract", "eval"]


def test_further_columns_count_for_features_of_the_user_s(configure, run, people, tmp_path):
    features = tmp_path / "theirs.h5"
    features.write_bytes(b"1")
    lines = people.read_text().splitlines()
    config = configure(f"matching.features={features}")
    for visible in ("0.5", "0.6"):
        people.write_text("\n".join([f"{lines[0]},visible", *(f"{line},{visible}" for line in lines[1:])]) + "\n")
        assert run(config)[0] == ["eval"]
    assert run(config)[0] == []


def test_another_parser_file_counts_and_its_place_does_not(configure, run, weights, tmp_path):
    run(configure())
    moved = shutil.move(weights, tmp_path / "elsewhere.onnx")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == []
    (tmp_path / "elsewhere.onnx.toml").write_text("label_set = 'atr-18'")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == ALL
    (tmp_path / "elsewhere.onnx").write_bytes(b"other weights")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == ALL


def test_what_a_parser_file_refers_to_counts(configure, run, weights):
    entry = b"\x0a\x08location\x12\x10parser.onnx.data"
    weights.write_bytes(b"graph " + entry + b" more")
    tensors, labels = weights.with_name("parser.onnx.data"), weights.with_name("mine.toml")
    tensors.write_bytes(b"1")
    labels.write_text("classes = ['a', 'b']")
    weights.with_name("parser.onnx.toml").write_text("label_set = 'mine.toml'")
    run(configure())
    assert run(configure())[0] == []
    tensors.write_bytes(b"2")
    assert run(configure())[0] == ALL
    labels.write_text("classes = ['a', 'c']")
    assert run(configure())[0] == ALL


def test_an_installed_parser_s_argument_counts(configure, run, tmp_path):
    run(configure("masks.parser=mine:small"))
    assert run(configure("masks.parser=mine:small"))[0] == []
    assert run(configure("masks.parser=mine:large"))[0] == ALL
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    run(configure(f"masks.parser=mine:{folder}"))
    moved = folder.rename(tmp_path / "moved")
    assert run(configure(f"masks.parser=mine:{moved}"))[0] == []
    (moved / "weights.bin").write_bytes(b"2")
    assert run(configure(f"masks.parser=mine:{moved}"))[0] == ALL


@pytest.mark.parametrize("parser", ["builtin", "schp:{weights}", "label-maps:{folder}"])
def test_a_raised_version_of_a_parser_makes_the_masks_stale(configure, run, weights, tmp_path, monkeypatch, parser):
    (tmp_path / "maps").mkdir()
    config = configure(f"masks.parser={parser.format(weights=weights, folder=tmp_path / 'maps')}")
    run(config)
    assert run(config)[0] == []
    name = {"builtin": "BUILTIN", "schp": "SCHP", "label-maps": "LABEL_MAPS"}[parser.partition(":")[0]]
    monkeypatch.setattr(versions, name, "raised")
    assert run(config)[0] == ALL
    monkeypatch.setattr(versions, "BUILTIN" if name != "BUILTIN" else "SCHP", "of another parser")
    assert run(config)[0] == []


def test_label_maps_count_by_content(configure, run, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "1_c1.png").write_bytes(b"1")
    (maps / "notes.txt").write_text("of no meaning")
    config = configure(f"masks.parser=label-maps:{maps}")
    run(config)
    (maps / "notes.txt").write_text("changed")
    assert run(config)[0] == []
    (maps / "1_c1.png").write_bytes(b"2")
    assert run(config)[0] == ALL


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("masks.file", ["train", "extract", "eval"]),
        ("model.weights", ALL),
        ("train.start", ALL),
        ("extract.checkpoint", ["extract", "eval"]),
        ("matching.features", ["eval"]),
    ],
)
def test_files_of_the_user_s_count_by_content(configure, run, tmp_path, key, stages):
    path = tmp_path / "theirs"
    path.write_bytes(b"1")
    assert run(configure(f"{key}={path}"))[0] == stages
    assert run(configure(f"{key}={path}"))[0] == []
    path.write_bytes(b"2")
    assert run(configure(f"{key}={path}"))[0] == [stage for stage in stages if stage != "masks"]


def test_a_new_version_of_a_stage_makes_it_anew(configure, fakes):
    import dataclasses

    config = configure()
    execute(config, stages=fakes.stages)
    fakes.took()
    raised = {"extract": 1}
    newer = [dataclasses.replace(s, format_version=s.format_version + raised.get(s.name, 0)) for s in fakes.stages]
    execute(config, stages=newer)
    assert fakes.took() == ["extract", "eval"]
    states = status(configure(), stages=[dataclasses.replace(s, format_version=99) for s in fakes.stages])
    assert "another version of sgsfa makes this stage differently" in states[0].reasons


def test_the_network_s_version_concerns_only_networks_that_it_changes(configure, run, monkeypatch):
    untouched = ("model.body_attention=false", "model.necks=true", "model.global_dim=64")
    for changes, stages in (((), ["train", "extract", "eval"]), (untouched, []), (("model.kind=baseline",), [])):
        config = configure(*changes)
        run(config)
        with monkeypatch.context() as patch:
            patch.setattr(graph, "_NETWORK", "raised")
            assert run(config)[0] == stages


# Several test sets


def test_several_test_sets_have_distinct_names_and_their_own_part(configure, run, people, tmp_path):
    other = tmp_path / "more" / "people" / people.name
    shutil.copytree(people.parent, other.parent)
    config = configure(f"data.tests=['csv:{people}', 'csv:{other}']")
    sources = Sources(config, _Notes())
    assert [test.name for test in sources.tests()] == ["people", "people-2"]
    run(config)
    cv2.imwrite(str(other.parent / "images" / "3_c1.png"), np.zeros((32, 16, 3), np.uint8))
    assert run(config)[0] == ["extract", "eval"]


def test_test_sets_are_named_after_the_data_in_any_script(configure, people, tmp_path):
    other = tmp_path / "行人" / "行人.csv"
    shutil.copytree(people.parent, other.parent)
    (other.parent / people.name).rename(other)
    sources = Sources(configure(f"data.tests=['csv:{other}']"), _Notes())
    assert [test.name for test in sources.tests()] == ["行人"]


class _Notes:
    def __init__(self):
        self.notes = []
        self.warnings = []

    def task(self, *arguments, **options):
        raise AssertionError("the fakes count nothing")

    def note(self, message):
        self.notes.append(message)

    def warn(self, message):
        self.warnings.append(message)


# --from, --until, --force


def test_until_stops_after_a_stage_and_the_next_run_goes_on(configure, run):
    assert run(configure(), until="train")[0] == ["masks", "train"]
    assert run(configure())[0] == ["extract", "eval"]


def test_from_does_not_touch_what_comes_before(configure, run):
    with pytest.raises(ArtifactError, match="masks is missing"):
        run(configure(), from_stage="train")
    run(configure(), until="masks")
    assert run(configure(), from_stage="train", until="train")[0] == ["train"]


def test_force_builds_anew_in_the_range(configure, run):
    _, first = run(configure())
    ran, report = run(configure(), from_stage="extract", force=True)
    assert ran == ["extract", "eval"]
    assert [outcome.action for outcome in report.stages] == ["reused", "reused", "ran", "ran"]
    assert [outcome.path for outcome in report.stages] == [outcome.path for outcome in first.stages]
    assert run(configure(), force=True)[0] == ALL


def test_what_was_made_from_a_forced_stage_is_made_anew_once(configure, run):
    run(configure())
    assert run(configure(), from_stage="train", until="train", force=True)[0] == ["train"]
    states = {state.stage: state for state in status(configure())}
    assert [states[name].state for name in ALL] == ["fresh", "fresh", "stale", "stale"]
    assert states["extract"].reasons == ("train was built anew",)
    assert states["eval"].reasons == ("extract is to be built anew",)
    with pytest.raises(ArtifactError, match="train was built anew"):
        run(configure(), from_stage="eval")
    ran, report = run(configure())
    assert ran == ["extract", "eval"]
    assert [outcome.action for outcome in report.stages] == ["reused", "reused", "ran", "ran"]
    assert run(configure())[0] == []
    assert {state.state for state in status(configure())} == {"fresh"}


def test_manifests_that_do_not_say_what_they_were_made_from_stay_usable(configure, run):
    _, report = run(configure())
    for outcome in report.stages:
        manifest = read_json(outcome.path / "manifest.json")
        del manifest["built_from"]
        write_json(outcome.path / "manifest.json", manifest)
    assert run(configure(), until="masks", force=True)[0] == ["masks"]
    assert run(configure())[0] == []


def test_a_forced_stage_that_was_stopped_is_gone_on_with(configure, run, fakes):
    run(configure())

    def stop(context):
        (context.out / "half.txt").write_text("1")
        raise KeyboardInterrupt

    fakes.bodies["train"] = stop
    with pytest.raises(KeyboardInterrupt):
        run(configure(), from_stage="train", force=True)
    assert {state.stage: state.state for state in status(configure())}["train"] == "partial"
    del fakes.bodies["train"]
    fakes.took()
    ran, report = run(configure())
    assert ran == ["train", "extract", "eval"]
    assert report.stages[1].action == "resumed"
    assert run(configure())[0] == []


def test_work_begun_from_what_was_built_anew_is_begun_again(configure, run, fakes):
    def stop(context):
        assert not (context.out / "half.txt").exists()
        (context.out / "half.txt").write_text("1")
        raise KeyboardInterrupt

    fakes.bodies["train"] = stop
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(configure())
        fakes.took()
        run(configure(), until="masks", force=True)


def test_an_input_that_changes_while_a_stage_reads_it_publishes_nothing(configure, run, fakes, people):
    image = people.parent / "images" / "1_c1.png"

    def meddle(context):
        cv2.imwrite(str(image), np.zeros((32, 16, 3), np.uint8))
        (context.out / "half.txt").write_text("1")
        return StageReport()

    before = image.read_bytes()
    fakes.bodies["masks"] = meddle
    with pytest.raises(DataError, match="training images changed while masks was at work"):
        run(configure())
    del fakes.bodies["masks"]
    fakes.took()
    image.write_bytes(before)
    ran, report = run(configure())
    assert ran == ALL
    assert report.stages[0].action == "ran"


def test_what_was_made_while_inputs_were_away_is_not_gone_on_with(configure, run, fakes, people, one_rejected):
    images, away = people.parent / "images", people.parent / "away"

    def unplug(context):
        images.rename(away)
        (context.out / "half.txt").write_text("1")
        return StageReport(total=2, rejected=rejected)

    run(configure(), until="train")
    fakes.took()
    # Where nothing was rejected, what is there was made of what the plan had found.
    for lost, action in (((), "resumed"), (one_rejected, "ran")):
        rejected = lost
        fakes.bodies["extract"] = unplug
        with pytest.raises(DataError, match="does not exist"):
            run(configure(), from_stage="extract", force=True)
        del fakes.bodies["extract"]
        fakes.took()
        away.rename(images)
        ran, report = run(configure(), until="extract")
        assert ran == ["extract"]
        assert report.stages[2].action == action


def test_a_broken_manifest_stops_a_run_until_it_is_forced(configure, run):
    _, report = run(configure())
    (report.stages[1].path / "manifest.json").write_text("{")
    assert {state.stage: state.state for state in status(configure())}["train"] == "broken"
    with pytest.raises(ArtifactError, match="the manifest cannot be read"):
        run(configure())
    assert run(configure(), from_stage="train", force=True)[0] == ["train", "extract", "eval"]


def test_ranges_that_make_no_sense(configure):
    names = ["masks", "train", "extract", "eval"]
    assert stage_range(names, None, None) == slice(0, 4)
    with pytest.raises(ConfigError) as caught:
        stage_range(names, "trian", None)
    assert caught.value.hint == "did you mean 'train'?"
    with pytest.raises(ConfigError, match="this configuration has no stage 'synth'"):
        stage_range(names, None, "synth")
    with pytest.raises(ConfigError, match="comes before"):
        stage_range(names, "eval", "masks")


# Rejected inputs


def test_masks_that_failed_stop_the_run_each_time_until_they_are_allowed(configure, fakes, run, one_rejected):
    fakes.rejected = one_rejected
    for expected in (["masks"], []):
        with pytest.raises(RejectedInputs) as caught:
            run(configure())
        assert fakes.took() == expected
        assert caught.value.rejected == one_rejected
        assert caught.value.total == 4
        assert [outcome.stage for outcome in caught.value.report.stages] == ["masks"]
    notes = _Notes()
    ran, report = run(configure("masks.allow_failed=true"), progress=notes)
    assert ran == ["train", "extract", "eval"]
    assert report.stages[0].rejected == one_rejected
    assert report.rejected == ()
    assert "1 of 4" in notes.warnings[0]
    assert read_json(report.stages[0].path / "rejected.json")["rejected"][0]["reason"] == "truncated"


def test_what_two_stages_reject_counts_as_often_as_they_were_given_it(configure, fakes, run, one_rejected):
    fakes.bodies["train"] = lambda context: StageReport(total=4, rejected=one_rejected)
    fakes.bodies["extract"] = lambda context: StageReport(total=6, rejected=one_rejected)
    _, report = run(configure(), until="extract")
    assert report.rejected == one_rejected + one_rejected
    assert report.total == 10


# Status


def test_status_tells_what_is_stale_and_why(configure, run, fakes):
    assert {state.state for state in status(configure())} == {"missing"}
    run(configure())
    fresh = status(configure())
    assert {state.state for state in fresh} == {"fresh"}
    assert all(state.size > 0 and state.finished for state in fresh)
    states = {state.stage: state for state in status(configure("train.epochs=3", "matching.rule=sum"))}
    assert states["masks"].state == "fresh"
    assert states["train"].state == "stale"
    assert states["train"].reasons == ("train.epochs: 120 -> 3",)
    assert states["train"].path == fresh[1].path
    assert states["extract"].reasons == ("input checkpoint changed",)
    assert states["eval"].reasons == ("matching.rule: 'shrunk' -> 'sum'", "input features changed")


def test_status_tells_inputs_that_came_and_went(configure, run, tmp_path):
    run(configure())
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1")
    states = {state.stage: state for state in status(configure(f"model.weights={path}"))}
    assert "input weights is new" in states["train"].reasons
    run(configure(f"model.weights={path}"))
    states = {state.stage: state for state in status(configure("train.epochs=2"))}
    assert "input weights is gone" in states["train"].reasons


def test_an_interrupted_stage_is_partial_and_resumed(configure, fakes, run):
    def stop(context):
        (context.out / "half.txt").write_text("1")
        raise KeyboardInterrupt

    fakes.bodies["train"] = stop
    with pytest.raises(KeyboardInterrupt):
        run(configure())
    states = {state.stage: state for state in status(configure())}
    assert states["train"].state == "partial"
    assert states["train"].size > 0
    assert states["extract"].state == "missing"

    del fakes.bodies["train"]
    fakes.took()
    notes = _Notes()
    ran, report = run(configure(), progress=notes)
    assert ran == ["train", "extract", "eval"]
    assert report.stages[1].action == "resumed"
    assert (report.stages[1].path / "half.txt").is_file()
    assert any("going on" in note for note in notes.notes)


def test_the_manifest_says_what_the_stage_was_made_from(configure, run):
    _, report = run(configure())
    manifest = ArtifactStore(configure().artifacts).at(report.stages[0].path).manifest
    assert manifest.decisive["masks.parser"] == "onnx"
    assert manifest.decisive["masks.grouping"] == "spreid"
    assert "masks.batch_size" not in manifest.decisive
    assert set(manifest.inputs) == {"training images", "parser"}
    assert manifest.extra["config"]["name"] == "small"
    assert manifest.extra["figures"]["images_per_second"] == 12.5


# Bad input


def test_files_that_do_not_exist_are_named(configure, tmp_path):
    nowhere = tmp_path / "nowhere"
    for override, kind in (
        (f"masks.file={nowhere}", FormatError),
        (f"extract.checkpoint={nowhere}", WeightsError),
        (f"model.weights={nowhere}", WeightsError),
        (f"matching.features={nowhere}", FormatError),
        (f"masks.parser=schp:{nowhere}", WeightsError),
        (f"masks.parser=label-maps:{nowhere}", DataError),
        (f"masks.grouping={nowhere}.toml", ConfigError),
        (f"data.source=csv:{nowhere}", DataError),
    ):
        with pytest.raises(kind) as caught:
            plan(configure(override))
        assert str(nowhere) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("masks.device=cuda", "no CUDA device"),
        ("train.device=cuda", "no CUDA device"),
        ("train.amp=fp16", "fp16 does not work on the CPU"),
        ("extract.device=cuda", "no CUDA device"),
        ("matching.device=cuda", "no CUDA device"),
        ("train.identities=3", "has 2 identities, a batch needs 3"),
        ("model.backbone=timm:no_such_model", "timm"),
        ("model.backbone=timm:resnet18", "`imagenet` is torchvision's"),
        ("model.weights=builtin", "`builtin` has no weights for resnet50"),
    ],
)
def test_what_a_later_stage_cannot_do_is_told_before_the_first(configure, run, fakes, monkeypatch, override, said):
    """Not after a night of parsing."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said):
        run(configure(override))
    assert fakes.took() == []


def test_what_no_stage_of_the_run_needs_is_not_asked_for(configure, run, fakes, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    maps = tmp_path / "maps"
    maps.mkdir()
    # Finished label maps are computed nowhere; nobody trains until the masks are there, or where a checkpoint is given.
    parser = (f"masks.parser=label-maps:{maps}", "masks.device=cuda", "train.device=cuda")
    assert run(configure(*parser), until="masks")[0] == ["masks"]
    (tmp_path / "m.safetensors").write_bytes(b"1")
    given = (f"extract.checkpoint={tmp_path / 'm.safetensors'}", "train.device=cuda", "train.identities=100")
    assert run(configure(*given))[0] == ["extract", "eval"]
    assert run(configure(*given, "extract.device=cuda"))[0] == [], "fresh features need no device"


def test_a_set_in_which_nobody_can_be_found_is_told_before_the_first_stage(configure, people, run, fakes):
    people.write_text(people.read_text().replace(",2,gallery", ",1,gallery"))
    with pytest.raises(
        DataError, match="no query has a gallery image of the same identity in another camera"
    ) as caught:
        run(configure())
    assert "camera 0" in caught.value.hint
    assert fakes.took() == []
    # Features are of use all the same.
    assert run(configure(), until="extract")[0] == ["masks", "train", "extract"]


def test_a_data_set_without_training_or_query_images(configure, people, run, fakes):
    text = people.read_text()
    people.write_text(text.replace("train", "gallery"))
    with pytest.raises(DataError, match="no images to train on"):
        Sources(configure(), _Notes()).training()
    with pytest.raises(DataError, match="no images to train on"):
        run(configure())
    people.write_text(text.replace("query", "gallery"))
    with pytest.raises(DataError, match="no query images"):
        Sources(configure(), _Notes()).test_records(configure().data.source)
    # Before the first stage, not after hours of training.
    with pytest.raises(DataError, match="no query images"):
        run(configure())
    assert fakes.took() == []
    # Who only trains needs nobody to search for.
    assert run(configure(), until="train")[0] == ["masks", "train"]
    assert status(configure())[-1].state == "missing"


def test_an_unfinished_stage_has_no_folder(configure):
    sources = Sources(configure(), _Notes())
    planned = plan(configure())
    sources.artifacts["masks"] = (planned[0].fingerprint, planned[0].artifact)
    with pytest.raises(ArtifactError, match="masks is not finished"):
        sources.folder("masks")


# Files of an earlier session


def test_a_file_that_cannot_be_gone_on_with_is_begun_anew(configure, tmp_path):
    notes, begun = _Notes(), tmp_path / "state.safetensors"
    context = StageContext(configure(), tmp_path, None, notes)

    def work():
        if begun.exists():
            raise WeightsError("the training state is of another run", where=begun)
        return "done"

    begun.write_bytes(b"1")
    assert bodies._going_on(context, work) == "done"
    assert "begun anew" in notes.notes[0]


def test_a_mask_file_is_not_begun_anew_because_the_disk_is_full(configure, tmp_path, monkeypatch):
    path, names = tmp_path / "masks.h5.partial", ["a.jpg", "b.jpg"]
    row = (
        np.ones((1, 4, 16, 8), np.uint8),
        np.ones((1, 64, 32), np.uint8),
        np.ones(1, np.float32),
        np.array([DONE], np.uint8),
    )
    meta = MaskMeta(
        parser="tiny", parser_version="1", weights_sha256="", label_set="lip-20", grouping="spreid", groups_absent=(),
        resize="area", input_size=(256, 128), flip=False, hard=False, backend="torch", precision="float32",
        batch_size=1,
    )  # fmt: skip
    with MaskWriter.create(path, names, meta) as writer:
        writer.write(0, *row)

    def work():
        with MaskWriter.resume(path, names) as writer, monkeypatch.context() as patch:
            patch.setattr(maskfile, "row_checksums", full)
            writer.write(1, *row)

    def full(*arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="no space left"):
        bodies._going_on(StageContext(configure(), tmp_path, None, _Notes()), work)
    with MaskWriter.resume(path, names) as writer:
        assert writer.done.tolist() == [DONE, PENDING]


def test_a_file_of_the_user_s_is_never_removed(configure, tmp_path):
    theirs = tmp_path / "theirs.pth"
    theirs.write_bytes(b"1")

    def work():
        raise WeightsError("no weights", where=theirs)

    (tmp_path / "stage").mkdir()
    with pytest.raises(WeightsError):
        bodies._going_on(StageContext(configure(), tmp_path / "stage", None, _Notes()), work)
    assert theirs.exists()


# Several processes

PROGRAM = textwrap.dedent(
    """
    import dataclasses, sys, time
    from pathlib import Path
    from pipeline.config import load_config
    from pipeline.runtime.files import atomic_write
    from pipeline.stages.execute import execute
    from pipeline.stages.graph import STAGES
    from pipeline.stages.stage import StageReport

    def slow(context):
        print("building", flush=True)
        for number in range(40):
            path = context.out / f"{number:02d}.txt"
            if not path.exists():
                with atomic_write(path) as temporary:
                    temporary.write_text(str(number))
                    time.sleep(0.06)
        return StageReport()

    stages = [dataclasses.replace(stage, build=slow) for stage in STAGES]
    execute(load_config(overrides=sys.argv[1:]), stages=stages, until="masks")
    """
)


def start(configure):
    config = configure()
    overrides = [
        f"data.source={config.data.source}",
        f"artifacts={config.artifacts}",
        f"masks.parser={config.masks.parser}",
        "name=small",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_runs_at_once(configure, run):
    process = start(configure)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "building"
        states = {state.stage: state for state in status(configure())}
        assert f"being built by process {process.pid}" in states["masks"].reasons[0]
        with pytest.raises(LockedError):
            run(configure(), until="masks")
        notes = _Notes()
        ran, report = run(configure(), until="masks", wait=True, progress=notes)
    finally:
        process.wait(timeout=60)
        process.communicate()
    assert ran == []
    assert report.idle
    assert any("another run has just finished it" in note for note in notes.notes)


def test_a_killed_run_is_resumed_and_leaves_nothing(configure, run, fakes):
    process = start(configure)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, report = run(configure())
    assert report.stages[0].action == "resumed"
    folder = report.stages[0].path.parent
    assert [path.name for path in folder.iterdir()] == [report.stages[0].path.name]

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import pytest

from pipeline.errors import ArtifactError, DataError, LockedError, RejectedInputs
from pipeline.runtime.files import read_json
from pipeline.stages.run import run_stages
from pipeline.stages.stage import StageReport
from pipeline.store.store import ArtifactStore
from tests.helpers.stages import RESULTS

ALL = ["masks", "train", "extract", "eval"]


def write_half(stage, folder):
    (folder / "half.txt").write_text("1")
    raise KeyboardInterrupt


def write_other(stage, folder):
    (folder / "made.txt").write_text(f"other {time.monotonic_ns()}")
    return StageReport()


# What runs


def test_run__second_time_does_nothing(configure, run):
    ran, report = run(configure())
    assert ran == ALL
    assert not report.idle
    assert [outcome.action for outcome in report.stages] == ["ran"] * 4
    ran, again = run(configure())
    assert ran == []
    assert again.idle
    assert again.results == report.results == RESULTS
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
def test_run__changed_key_reruns_what_depends_on_it(configure, run, override, expected):
    run(configure())
    ran, _ = run(configure(override))
    assert ran == expected
    ran, _ = run(configure())
    assert ran == [], "the earlier artifacts were left alone"


def test_run__touched_or_moved_images_rerun_nothing(configure, run, people, tmp_path):
    run(configure())
    os.utime(people.parent / "images" / "1_c1.png")
    assert run(configure())[0] == []
    shutil.move(people.parent, tmp_path / "moved")
    assert run(configure(f"data.source=csv:{tmp_path / 'moved' / people.name}"))[0] == []


@pytest.mark.parametrize(
    ("image", "expected"), [("1_c1", ALL), ("3_c1", ["extract", "eval"]), ("4_c2", ["extract", "eval"])]
)
def test_run__changed_image_reruns_what_reads_it(configure, run, people, image, expected):
    run(configure())
    cv2.imwrite(str(people.parent / "images" / f"{image}.png"), np.zeros((32, 16, 3), np.uint8))
    assert run(configure())[0] == expected


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
def test_run__files_of_the_user_count_by_content(configure, run, tmp_path, key, stages):
    path = tmp_path / "theirs"
    path.write_bytes(b"1")
    assert run(configure(f"{key}={path}"))[0] == stages
    assert run(configure(f"{key}={path}"))[0] == []
    path.write_bytes(b"2")
    assert run(configure(f"{key}={path}"))[0] == [stage for stage in stages if stage != "masks"]


def test_run__raised_format_version_reruns_a_stage(configure, run, fakes, monkeypatch):
    run(configure())
    kind = next(stage for stage in fakes.stages if stage.name == "extract")
    monkeypatch.setattr(kind, "format_version", 99)
    assert run(configure())[0] == ["extract", "eval"]


# until, from, force


def test_until__stops_and_the_next_run_continues(configure, run):
    assert run(configure(), until="train")[0] == ["masks", "train"]
    assert run(configure())[0] == ["extract", "eval"]


def test_force__reruns_the_range_only(configure, run):
    _, first = run(configure())
    ran, report = run(configure(), from_stage="extract", force=True)
    assert ran == ["extract", "eval"]
    assert [outcome.action for outcome in report.stages] == ["reused", "reused", "ran", "ran"]
    assert [outcome.path for outcome in report.stages] == [outcome.path for outcome in first.stages]
    assert run(configure(), force=True)[0] == ALL


def test_force__what_read_another_result_reruns_once(configure, run, fakes):
    run(configure())
    fakes.work["train"] = write_other
    run(configure(), from_stage="train", until="train", force=True)
    fakes.work.clear()
    fakes.took()
    assert run(configure())[0] == ["extract"], "its features are equal, so eval need not run again"
    assert run(configure())[0] == []


def test_force__interrupted_keeps_the_old_artifact_and_is_resumed(configure, run, fakes, states):
    run(configure())
    fakes.work["train"] = write_half
    with pytest.raises(KeyboardInterrupt):
        run(configure(), from_stage="train", until="train", force=True)
    assert states(configure())["train"].state == "up to date"
    fakes.work.clear()
    fakes.took()
    ran, report = run(configure(), from_stage="train", until="train", force=True)
    assert ran == ["train"]
    assert report.stages[1].action == "resumed"


# Interruption and inputs that change


def test_interrupted_stage__is_incomplete_and_resumed(configure, fakes, run, states, caplog):
    fakes.work["train"] = write_half
    with pytest.raises(KeyboardInterrupt):
        run(configure())
    planned = states(configure())
    assert [planned[name].state for name in ALL] == ["up to date", "incomplete", "missing", "missing"]
    fakes.work.clear()
    fakes.took()
    with caplog.at_level(logging.INFO, logger="sgsfa"):
        ran, report = run(configure())
    assert ran == ["train", "extract", "eval"]
    assert report.stages[1].action == "resumed"
    assert (report.stages[1].path / "half.txt").is_file()
    assert any("train" in text and "resuming" in text for text in caplog.messages)


def test_interrupted_stage__starts_again_if_upstream_was_rebuilt(configure, run, fakes):
    def stop(stage, folder):
        assert not (folder / "half.txt").exists()
        write_half(stage, folder)

    fakes.work["train"] = stop
    fakes.work["masks"] = write_other
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(configure())
        fakes.took()
        run(configure(), until="masks", force=True)


def test_changed_input__while_a_stage_reads_it_publishes_nothing(configure, run, fakes, people):
    image = people.parent / "images" / "1_c1.png"

    def change(stage, folder):
        cv2.imwrite(str(image), np.zeros((32, 16, 3), np.uint8))
        (folder / "half.txt").write_text("1")
        return StageReport()

    before = image.read_bytes()
    fakes.work["masks"] = change
    with pytest.raises(DataError, match="training images changed while masks was running"):
        run(configure())
    fakes.work.clear()
    fakes.took()
    image.write_bytes(before)
    ran, report = run(configure())
    assert ran == ALL
    assert not (report.stages[0].path / "half.txt").exists()


@pytest.mark.parametrize("rejects", [False, True])
def test_vanished_input__keeps_work_only_if_all_of_it_was_read(configure, run, fakes, people, one_rejected, rejects):
    images, away = people.parent / "images", people.parent / "away"

    def unplug(stage, folder):
        images.rename(away)
        (folder / "half.txt").write_text("1")
        return StageReport(total=2, rejected=one_rejected if rejects else ())

    run(configure(), until="train")
    fakes.took()
    fakes.work["extract"] = unplug
    with pytest.raises(DataError):
        run(configure(), from_stage="extract")
    fakes.work.clear()
    fakes.took()
    away.rename(images)
    ran, report = run(configure(), until="extract")
    assert ran == ["extract"]
    assert (report.stages[2].path / "half.txt").exists() is not rejects


# Rejected inputs


def test_rejected_masks__stop_the_run_until_they_are_allowed(configure, fakes, run, one_rejected):
    fakes.rejected = one_rejected
    for expected in (["masks"], []):
        with pytest.raises(RejectedInputs) as caught:
            run(configure())
        assert fakes.took() == expected
        assert caught.value.rejected == one_rejected
        assert caught.value.total == 4
        assert [outcome.stage for outcome in caught.value.report.stages] == ["masks"]
    ran, report = run(configure("masks.allow_failed=true"))
    assert ran == ["train", "extract", "eval"]
    assert report.stages[0].rejected == one_rejected
    assert report.rejected == ()
    assert read_json(report.stages[0].path / "rejected.json")["rejected"][0]["reason"] == "truncated"


def test_rejected_inputs__of_several_stages_add_up(configure, fakes, run, one_rejected, caplog):
    fakes.work["train"] = lambda stage, folder: StageReport(total=4, rejected=one_rejected)
    fakes.work["extract"] = lambda stage, folder: StageReport(total=6, rejected=one_rejected)
    _, report = run(configure("masks.allow_failed=true"), until="extract")
    assert report.rejected == one_rejected + one_rejected
    assert report.total == 10
    assert sum("rejected.json" in text for text in caplog.messages) == 2


# The store


def test_manifest__records_what_the_stage_was_built_from(configure, run):
    _, report = run(configure())
    manifest = ArtifactStore(configure().artifacts).at(report.stages[0].path).manifest
    values = manifest.provenance.values
    assert values["masks.parser"] == "onnx"
    assert values["masks.grouping"] == "spreid"
    assert "masks.batch_size" not in values
    assert {"input training images", "input parser"} <= set(values)
    assert manifest.extra["config"]["name"] == "small"
    assert manifest.extra["figures"]["images_per_second"] == 12.5


def test_broken_manifest__is_stale_and_rebuilt(configure, run, states):
    _, report = run(configure())
    (report.stages[1].path / "manifest.json").write_text("{")
    assert states(configure())["train"].state == "stale"
    assert run(configure())[0] == ["train"]


def test_newer_manifest__is_never_replaced(configure, run):
    _, report = run(configure())
    manifest = report.stages[1].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    for force in (False, True):
        with pytest.raises(ArtifactError, match="newer"):
            run(configure(), force=force)
    assert '"format_version": 2' in manifest.read_text()


def test_folder__of_an_unfinished_stage_is_an_error(configure):
    from pipeline.stages.plan import make_plan

    with pytest.raises(ArtifactError, match="masks"):
        make_plan(configure()).sources.folder("masks")


# Several processes

PROGRAM = textwrap.dedent(
    """
    import sys, time
    from pipeline.config_file import load_config
    from pipeline.runtime.files import atomic_write
    from pipeline.stages.run import run_stages
    from pipeline.stages.stage import StageReport
    from tests.helpers.stages import FakeStages

    def slow(stage, folder):
        print("building", flush=True)
        for number in range(40):
            path = folder / f"{number:02d}.txt"
            if not path.exists():
                with atomic_write(path) as temporary:
                    temporary.write_text(str(number))
                    time.sleep(0.06)
        return StageReport()

    fakes = FakeStages()
    fakes.work["masks"] = slow
    run_stages(load_config(overrides=sys.argv[1:]), stages=fakes.stages, until="masks")
    """
)


def start(config):
    overrides = [
        f"data.source={config.data.source}",
        f"artifacts={config.artifacts}",
        f"masks.parser={config.masks.parser}",
        "name=small",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_runs__the_second_stops_or_waits(configure, run, states, caplog):
    process = start(configure())
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "building"
        assert str(process.pid) in states(configure())["masks"].reasons[0]
        with pytest.raises(LockedError):
            run(configure(), until="masks")
        with caplog.at_level(logging.INFO, logger="sgsfa"):
            ran, report = run(configure(), until="masks", wait=True)
    finally:
        process.wait(timeout=60)
        process.communicate()
    assert ran == []
    assert report.idle
    assert any("already finished" in text for text in caplog.messages)


def test_killed_run__is_resumed_and_leaves_nothing(configure, run):
    process = start(configure())
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, report = run(configure())
    assert report.stages[0].action == "resumed"
    folder = report.stages[0].path.parent
    assert [path.name for path in folder.iterdir()] == [report.stages[0].path.name]


def test_run_stages__fails_before_the_first_stage_if_a_later_one_cannot_work(configure, fakes, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for key in ("masks", "train", "extract", "matching"):
        if key == "masks":
            continue  # its device is checked by loading the parser
        with pytest.raises(Exception, match="CUDA"):
            run_stages(configure(f"{key}.device=cuda"), stages=fakes.stages)
    assert fakes.took() == []


RANKS = textwrap.dedent(
    """
    import json, os, sys
    from pipeline.config_file import load_config
    from pipeline.errors import Rejected
    from pipeline.stages.run import StoppedRun, run_stages
    from tests.helpers.stages import FakeStages

    fakes = FakeStages()
    found = []
    for override, rejected in (("name=small", ()), ("name=small", ()), ("masks.flip=true", (Rejected("a", "b"),))):
        fakes.rejected = rejected
        config = load_config(overrides=[*sys.argv[1:], override])
        try:
            report, stopped = run_stages(config, stages=fakes.stages, until="train"), False
        except StoppedRun as error:
            report, stopped = error.report, True
        found.append([fakes.took(), stopped, [outcome.path.name for outcome in report.stages]])
    print(json.dumps(found), flush=True)
    os._exit(0)
    """
)


def test_ranks__share_distributed_stages_wait_for_the_others_and_stop_together(configure, people):
    config = configure()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    overrides = [
        f"data.source={config.data.source}", f"artifacts={config.artifacts}", f"masks.parser={config.masks.parser}",
        "train.identities=4", "train.device=cpu",
    ]  # fmt: skip
    # Two processes need two identities each.
    people.write_text(people.read_text().replace("1_c1.png,1,", "1_c1.png,11,").replace("2_c1.png,2,", "2_c1.png,12,"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, *overrides],
            env={**os.environ, **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=240)[0]) for process in processes)
    assert [ran for ran, _, _ in first] == [["masks", "train"], [], ["masks"]]
    assert [ran for ran, _, _ in second] == [["train"], [], []]
    assert [stopped for _, stopped, _ in first] == [stopped for _, stopped, _ in second] == [False, False, True]
    assert [paths for _, _, paths in first] == [paths for _, _, paths in second]


def test_run__other_settings_report_that_a_stage_starts_from_scratch(configure, run, caplog):
    _, first = run(configure())
    with caplog.at_level(logging.INFO, "sgsfa"):
        run(configure("train.epochs=7"), until="train")
    assert (
        f"train: starting from scratch instead of continuing {first.stages[1].path} (train.epochs changed from"
        in caplog.text
    )
    assert "train.start continues from earlier weights" in caplog.text


def test_force__one_stage_builds_missing_ones_before_it(configure, run):
    assert run(configure(), until="train", force="train")[0] == ["masks", "train"]
    assert run(configure(), until="train", force="train")[0] == ["train"]

"""A whole run on a tiny data set: what it leaves, what it counts, and that it ends the same however it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import LossConfig
from pipeline.datasets.images import read_image
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import ConfigError, DataError, DeviceError, WeightsError
from pipeline.formats.checkpoint import read_meta
from pipeline.formats.masks import PART_NAMES
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import embed
from pipeline.model.sgsfa import SGSFA
from pipeline.runtime.files import sha256_file
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT, Task
from pipeline.training import calibrate as calibrate_module
from pipeline.training import loop as loop_module
from pipeline.training import run as run_module
from pipeline.training import validate as validate_module
from pipeline.training.calibrate import NEVER
from pipeline.training.feeder import Feeder
from pipeline.training.metrics_log import MetricsLog, read_metrics
from pipeline.training.run import train
from tests.helpers.notes import Notes
from tests.helpers.training import HEIGHT, WIDTH, make_masks, make_people, small_model, small_training


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.safetensors")[0].state_dict()


def assert_equal_weights(one: Path, two: Path) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def by_path(record: Record) -> str:
    return record.path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs of this module have in common, and an undisturbed run, with evaluations, to compare with."""
    root = tmp_path_factory.mktemp("training")
    dataset = make_people(root / "people")
    arguments = {
        "dataset": dataset,
        "masks": make_masks(root / "masks.h5", dataset),
        "model": small_model(),
        "loss": LossConfig(),
        "config": small_training(eval_every=1, checkpoint_minutes=0),
        "tests": [dataset],
    }
    report = train(root / "straight", **arguments)
    return {"arguments": arguments, "folder": root / "straight", "report": report}


@pytest.fixture(autouse=True)
def _no_pictures(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here; the undisturbed run has drawn."""
    monkeypatch.setattr(run_module, "draw_curves", lambda metrics, out: None)


def test_leaves_a_checkpoint_a_log_curves_and_a_report(work: dict[str, Any]) -> None:
    folder, report = work["folder"], work["report"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "training.json",
    ]
    assert (report.images, report.identities, report.without_mask, report.steps) == (18, 6, 0, 4)
    meta = read_meta(folder / "model.safetensors")
    assert meta.num_classes == 6
    assert meta.thresholds == report.thresholds
    assert len(report.thresholds) == 7
    assert all(0 < tau < 1 for tau in report.thresholds[:4])
    assert report.best is not None
    assert read_meta(folder / "best.safetensors").epochs == report.best[0]
    lines = list(read_metrics(folder / "metrics.jsonl"))
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2]
    assert lines[-1]["kind"] == "calibration"
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "step")
    assert all(0 <= line["mAP"] <= 1 for line in lines if line["kind"] == "evaluation")
    assert set(next(line for line in lines if line["kind"] == "epoch")["visibility_accuracy"]) >= {"head", "top"}


def test_a_finished_run_is_not_done_again(work: dict[str, Any]) -> None:
    before = (work["folder"] / "model.safetensors").stat().st_mtime_ns
    again = train(work["folder"], **work["arguments"])
    assert again == work["report"]
    assert (work["folder"] / "model.safetensors").stat().st_mtime_ns == before


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Have something happen when a step begins."""
    before = loop_module.learning_rate
    waiting = [action]

    def rate(now: int, per_epoch: int, config: Any) -> float:
        if now == step and waiting:
            waiting.pop()()
        return before(now, per_epoch, config)

    monkeypatch.setattr(loop_module, "learning_rate", rate)


# In the middle of an epoch, at the end of one (2 steps each, the evaluation follows), and in the last step but one.
@pytest.mark.parametrize(("step", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT)])
def test_stopped_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, work: dict[str, Any], step: int, number: signal.Signals
) -> None:
    arguments = work["arguments"]
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **arguments)
    assert (tmp_path / "state" / "state.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    torch.rand(100)  # whatever the process draws in between
    notes = Notes()
    train(tmp_path, **arguments, progress=notes)
    assert f"training goes on from step {step + 1} of 4" in notes.said
    assert_equal_weights(work["folder"], tmp_path)
    straight, resumed = (list(read_metrics(folder / "metrics.jsonl")) for folder in (work["folder"], tmp_path))
    assert [(line["kind"], line["step"]) for line in straight] == [(line["kind"], line["step"]) for line in resumed]
    for one, two in zip(straight, resumed, strict=True):
        if one["kind"] in ("step", "evaluation"):
            assert {k: v for k, v in one.items() if k != "images_per_second"} == {
                k: v for k, v in two.items() if k != "images_per_second"
            }


@pytest.mark.parametrize("module", [calibrate_module, validate_module], ids=["calibration", "test"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_stopped_within_an_evaluation_makes_it_first_when_resumed(
    tmp_path: Path, work: dict[str, Any], module: ModuleType, epoch: int
) -> None:
    """The stop does not wait for the evaluation's end, and nothing is missing or double afterwards."""
    looks, embed_one = [], module.embed

    def look(*arguments: Any, **options: Any) -> Any:
        looks.append(1)
        if len(looks) == (epoch - 1) * per_evaluation + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return embed_one(*arguments, **options)

    arguments = work["arguments"]
    # Batches of the calibration, and of queries and gallery.
    per_evaluation = -(-18 // 6) if module is calibrate_module else 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "embed", look)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **arguments)
    assert len(looks) == (epoch - 1) * per_evaluation + 1, "it ends between two batches"
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["kind"] for line in lines].count("evaluation") == epoch - 1
    train(tmp_path, **arguments)
    assert_equal_weights(work["folder"], tmp_path)
    assert (tmp_path / "best.safetensors").read_bytes() == (work["folder"] / "best.safetensors").read_bytes()
    straight, resumed = (list(read_metrics(folder / "metrics.jsonl")) for folder in (work["folder"], tmp_path))
    assert [(line["kind"], line["step"], line.get("mAP")) for line in straight] == [
        (line["kind"], line["step"], line.get("mAP")) for line in resumed
    ]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stop_at_the_very_end_of_an_evaluation_is_not_lost(tmp_path: Path, work: dict[str, Any], epoch: int) -> None:
    compute, made = validate_module.RankStream.compute, []

    def computed_then_stopped(self: Any) -> Any:
        made.append(compute(self))
        if len(made) == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        # After the last batch, where nobody asks for stops any more.
        patch.setattr(validate_module.RankStream, "compute", computed_then_stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **work["arguments"])
    train(tmp_path, **work["arguments"])
    assert_equal_weights(work["folder"], tmp_path)
    kinds = [[line["kind"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (work["folder"], tmp_path)]
    assert kinds[0] == kinds[1]


def test_an_evaluation_that_fails_costs_no_steps_and_is_logged_once(tmp_path: Path, work: dict[str, Any]) -> None:
    """The state is saved before it, however short ago the last one was."""
    arguments = work["arguments"] | {"config": small_training(eval_every=1, checkpoint_minutes=60)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate_module, "embed", out_of_memory)
        with pytest.raises(DeviceError, match="the last state at step 2 is kept"):
            train(tmp_path, **arguments)

    def die() -> None:
        raise _Killed

    # Killed in the first step after the evaluation that was made up for: it is made again, and not told twice.
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, die)
        with pytest.raises(_Killed):
            train(tmp_path, **arguments)
    train(tmp_path, **arguments)
    assert_equal_weights(work["folder"], tmp_path)
    kinds = [[line["kind"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (work["folder"], tmp_path)]
    assert kinds[0] == kinds[1]


def test_a_stop_after_the_last_step_is_not_lost(tmp_path: Path, work: dict[str, Any]) -> None:
    end, arguments = loop_module.Loop._end_epoch, work["arguments"] | {"config": small_training(checkpoint_minutes=60)}

    def ended(self: Any, log: Any) -> None:
        end(self, log)
        if self.step == self.total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Loop, "_end_epoch", ended)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **arguments)
    assert not (tmp_path / "model.safetensors").exists()
    train(tmp_path, **arguments)
    assert_equal_weights(work["folder"], tmp_path)


def test_a_part_that_patches_cover_everywhere_has_a_threshold_all_the_same(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paste = calibrate_module.augment

    def covered(*given: Any) -> Any:
        images, parts, body = paste(*given)
        parts[:, 3] = 0
        return images, parts, body

    monkeypatch.setattr(calibrate_module, "augment", covered)
    report = train(tmp_path, **work["arguments"] | {"tests": (), "config": small_training(epochs=1)})
    assert 0 < report.thresholds[3] < NEVER


def test_evaluations_show_how_far_they_are(tmp_path: Path, work: dict[str, Any]) -> None:
    tasks: list[tuple[str, int | None]] = []

    def begun(label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Task:
        tasks.append((label, total))
        return SILENT.task(label, total=total, done=done, unit=unit)

    notes = Notes()
    notes.task = begun
    train(tmp_path, **work["arguments"], progress=notes)
    tests: Dataset = work["arguments"]["tests"][0]
    each = [("calibrate", 18), ("test", len(tests.split("query")) + len(tests.split("gallery")))]
    assert [task for task in tasks if task[0] in ("calibrate", "test")] == [*each, *each, each[0]]


class _Killed(BaseException):
    pass


def test_killed_between_states_repeats_the_lost_steps_to_the_bit(tmp_path: Path, work: dict[str, Any]) -> None:
    arguments = work["arguments"] | {"config": small_training(eval_every=1, checkpoint_minutes=60)}

    def die() -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        # As long as no minute has passed no state is saved, but for the one that a first stop leaves.
        at_step(patch, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, die)
        with pytest.raises(_Killed):
            train(tmp_path, **arguments)
    train(tmp_path, **arguments)
    assert_equal_weights(work["folder"], tmp_path)


def test_images_above_the_budget_give_the_same_bits(tmp_path: Path, work: dict[str, Any]) -> None:
    config = small_training(eval_every=1, image_budget_gb=1e-6)
    train(tmp_path, **work["arguments"] | {"config": config})
    assert_equal_weights(work["folder"], tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": small_model(part_dim=16)}, "model.part_dim"),
        ({"config": small_training(eval_every=1, lr=0.01)}, "train.lr"),
        ({"loss": LossConfig(balance=0.5)}, "loss.balance"),
    ],
)
def test_a_state_of_another_run_is_refused(
    tmp_path: Path, work: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **work["arguments"])
    with pytest.raises(WeightsError, match=named):
        train(tmp_path, **work["arguments"] | change)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (sys.exit, (3,))


@pytest.mark.parametrize("content", [b"", b"no state", pickle.dumps(_Bomb())])
def test_a_damaged_state_or_a_pickle_is_refused_and_not_opened(
    tmp_path: Path, work: dict[str, Any], content: bytes
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="not a training state"):
        train(tmp_path, **work["arguments"])


def test_images_without_masks_are_counted(tmp_path: Path, work: dict[str, Any]) -> None:
    dataset = work["arguments"]["dataset"]
    masks = make_masks(tmp_path / "masks.h5", dataset, failed=5)
    notes = Notes()
    config = small_training(epochs=1, ema=0)
    report = train(tmp_path / "run", **work["arguments"] | {"masks": masks, "config": config}, progress=notes)
    assert report.without_mask == 5
    assert any("5 of 18 training images have no mask" in said for said in notes.said)


def test_a_part_that_the_masks_cannot_tell_of_is_left_out(tmp_path: Path, work: dict[str, Any]) -> None:
    dataset = work["arguments"]["dataset"]
    masks = make_masks(tmp_path / "masks.h5", dataset, absent=("shoes",))
    notes = Notes()
    config = small_training(epochs=1, ema=0)
    arguments = work["arguments"] | {"masks": masks, "config": config}
    report = train(tmp_path / "run", **arguments, progress=notes)
    assert any("cannot tell of shoes" in said for said in notes.said)
    assert report.thresholds[3] == NEVER
    assert all(0 < tau < 1 for tau in report.thresholds[:3])
    assert "shoes" not in report.visibility_accuracy
    network, meta = load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert network.state_dict()["trained_parts"].tolist() == [1, 1, 1, 0]
    with torch.no_grad():
        output = network(torch.rand(2, 3, meta.model.height, meta.model.width))
    assert (output.visibility[:, 3] == 0).all()
    assert (output.matched[:, 3] == 0).all()
    assert (output.visibility[:, :3] > 0).all()

    everything = make_masks(tmp_path / "none.h5", dataset, absent=PART_NAMES)
    with pytest.raises(DataError, match="no part of the body"):
        train(tmp_path / "none", **arguments | {"masks": everything})


def test_masks_that_show_nobody_are_refused(tmp_path: Path, work: dict[str, Any]) -> None:
    """As of label maps written as 0 and 255, or read with a wrong label set."""
    dataset = work["arguments"]["dataset"]
    masks = make_masks(tmp_path / "masks.h5", dataset, empty=PART_NAMES)
    with pytest.raises(DataError, match="the masks show nobody: those of all 18 training images are empty"):
        train(tmp_path / "run", **work["arguments"] | {"masks": masks})


def test_a_part_that_no_mask_shows_and_single_images_are_told(tmp_path: Path, work: dict[str, Any]) -> None:
    dataset: Dataset = work["arguments"]["dataset"]
    masks = make_masks(tmp_path / "masks.h5", dataset, empty=("head", "shoes"))
    first = dataset.split("train")[0].pid
    taken = [record for record in dataset.records if record.split == "train" and record.pid == first][1:]
    fewer = dataclasses.replace(dataset, records=tuple(each for each in dataset.records if each not in taken))
    notes = Notes()
    arguments = work["arguments"] | {"dataset": fewer, "masks": masks, "config": small_training(epochs=1)}
    train(tmp_path / "run", **arguments, progress=notes)
    assert any("no mask shows head, shoes, although the labels have it" in said for said in notes.said)
    assert any("1 of 6 identities have a single image" in said for said in notes.said)


def test_no_masks_at_all_and_the_baseline(tmp_path: Path, work: dict[str, Any]) -> None:
    config = small_training(epochs=1, ema=0)
    bare = train(tmp_path / "bare", **work["arguments"] | {"masks": None, "config": config})
    assert bare.without_mask == 18
    assert bare.thresholds == (0.0,) * 7
    model = small_model(kind="baseline", global_dim=8)
    rival = train(tmp_path / "rival", **work["arguments"] | {"model": model, "config": config})
    assert rival.without_mask == 0
    lines = [line for line in read_metrics(tmp_path / "rival" / "metrics.jsonl") if line["kind"] == "step"]
    assert all(line["masks"] == 0 < line["body"] for line in lines)


@pytest.mark.parametrize("with_masks", [True, False])
def test_features_without_necks_are_centred(tmp_path: Path, work: dict[str, Any], with_masks: bool) -> None:
    arguments = work["arguments"]
    folder = work["folder"]
    if not with_masks:
        folder = tmp_path / "bare"
        train(folder, **arguments | {"masks": None, "config": small_training(epochs=1)})
    network, _ = load_checkpoint(folder / "model.safetensors")
    assert isinstance(network, SGSFA)
    centres, global_centre = network.part_centres, network.global_centre
    assert centres is not None
    assert global_centre is not None
    centres, global_centre = centres.clone(), global_centre.clone()
    dataset: Dataset = arguments["dataset"]
    images = torch.from_numpy(
        np.stack([read_image(dataset.root / record.path) for record in sorted(dataset.split("train"), key=by_path)])
    )
    centred = embed(network, images)
    network.reset_centres()
    bare = embed(network, images)
    # Every mask of `make_masks` is the same, and shows all parts.
    for part in range(7):
        there = bare.parts[:, part].any(1)
        assert there.any() or part > 3
        if there.any():
            assert torch.allclose(bare.parts[there, part].mean(0), centres[part], atol=1e-5)
        assert torch.allclose(centred.parts[there, part], bare.parts[there, part] - centres[part], atol=1e-6)
        assert not (part > 3 and centred.parts[~there, part].any())
    assert torch.allclose(bare.body.mean(0), global_centre, atol=1e-5)
    assert torch.allclose(centred.body, bare.body - global_centre, atol=1e-6)


def test_starting_from_a_checkpoint(tmp_path: Path, work: dict[str, Any]) -> None:
    arguments = work["arguments"]
    first, before = work["folder"] / "model.safetensors", weights(work["folder"])
    # A rate so small that what comes out is what it began with.
    config = small_training(epochs=1, ema=0, start=str(first), lr=1e-30, weight_decay=0)
    larger = small_model(height=HEIGHT * 2, width=WIDTH * 2, weights="imagenet")  # not fetched: they are not needed
    notes = Notes()
    train(tmp_path / "larger", **arguments | {"config": config, "model": larger}, progress=notes)
    assert f"starting from {first}; its identity classifiers go on, too" in notes.said
    origin = read_meta(tmp_path / "larger" / "model.safetensors").started_from
    assert origin == f"folder:people ({sha256_file(first)[:12]})"
    assert read_meta(first).started_from == ""
    after = weights(tmp_path / "larger")
    learnt = [name for name in before if not any(word in name for word in ("running", "tracked", "centre"))]
    assert all(torch.allclose(before[name], after[name], atol=1e-12) for name in learnt)
    fresh = {name for name in learnt if name.endswith("classify.weight")}
    assert fresh


@pytest.mark.parametrize("change", ["more people", "others of the same number"])
def test_classifiers_of_other_people_start_anew(tmp_path: Path, work: dict[str, Any], change: str) -> None:
    first, before = work["folder"] / "model.safetensors", weights(work["folder"])
    others = make_people(tmp_path / "people", train=7 if change == "more people" else 6)
    if change != "more people":
        # The same names and as many people, but who is who has changed.
        moved = [dataclasses.replace(each, pid={1: 2, 2: 1}.get(each.pid, each.pid)) for each in others.records]
        others = Dataset(others.kind, others.name, others.root, tuple(moved))
    config = small_training(epochs=1, ema=0, start=str(first), lr=1e-30, weight_decay=0)
    notes = Notes()
    masks = make_masks(tmp_path / "others.h5", others, absent=("shoes",))
    arguments = work["arguments"] | {"config": config, "dataset": others, "masks": masks}
    train(tmp_path / "new", **arguments, progress=notes)
    assert f"starting from {first}; its identity classifiers are of other people and start anew" in notes.said
    after = weights(tmp_path / "new")
    classifiers = {name for name in before if name.endswith("classify.weight")}
    assert not any(torch.equal(before[name], after[name]) for name in classifiers)
    assert after["trained_parts"].tolist() == [1, 1, 1, 0]
    words = ("running", "tracked", "centre", "classify", "trained_parts")
    learnt = [name for name in before if not any(word in name for word in words)]
    assert all(torch.equal(before[name], after[name]) for name in learnt)


def test_a_run_that_started_from_a_checkpoint_resumes_to_the_bit(tmp_path: Path, work: dict[str, Any]) -> None:
    first = work["folder"] / "model.safetensors"
    # Without an average, evaluations set the centres in the very network that goes on training.
    config = small_training(epochs=2, ema=0, eval_every=1, checkpoint_minutes=0, start=str(first))
    arguments = work["arguments"] | {"config": config}
    train(tmp_path / "straight", **arguments)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", **arguments)
    notes = Notes()
    train(tmp_path / "stopped", **arguments, progress=notes)
    assert not any(said.startswith("starting from") for said in notes.said)
    assert_equal_weights(tmp_path / "straight", tmp_path / "stopped")
    assert read_meta(tmp_path / "stopped" / "model.safetensors").started_from


def test_a_checkpoint_that_cannot_be_started_from(tmp_path: Path, work: dict[str, Any]) -> None:
    first = work["folder"] / "model.safetensors"
    arguments = work["arguments"] | {"config": small_training(start=str(first))}
    with pytest.raises(WeightsError, match=r"model\.part_dim = 8, not 16") as caught:
        train(tmp_path / "a", **arguments | {"model": small_model(part_dim=16)})
    assert caught.value.where == str(first)
    with pytest.raises(WeightsError, match=r"model\.kind = sgsfa, not baseline"):
        train(tmp_path / "b", **arguments | {"model": small_model(kind="baseline")})
    with pytest.raises(WeightsError, match="checkpoint not found"):
        train(tmp_path / "c", **arguments | {"config": small_training(start=str(tmp_path / "none"))})


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    dataset = make_people(tmp_path / "people", test=1)
    broken = dataset.split("train")[3]
    dataset.path_of(broken).write_bytes(b"no image")
    notes = Notes()
    report = train(
        tmp_path / "run",
        dataset=dataset,
        masks=None,
        model=small_model(),
        loss=LossConfig(),
        config=small_training(epochs=1, ema=0),
        progress=notes,
    )
    assert [each.path for each in report.failed] == [broken.path]
    assert report.images == 17
    assert any(broken.path in said for said in notes.said)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path, work: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before = loop_module.augment
        calls = 0

        def poison(images: Any, parts: Any, body: Any, draws: Any) -> Any:
            nonlocal calls
            calls += 1
            normal, *masks = before(images, parts, body, draws)
            return (normal * torch.nan if calls == 3 else normal, *masks)

        patch.setattr(loop_module, "augment", poison)
        with pytest.raises(DataError, match="not finite at step 3"):
            train(tmp_path, **work["arguments"])
    bad = json.loads((tmp_path / "state" / "non-finite-batch.json").read_text())
    names = {record.path for record in work["arguments"]["dataset"].split("train")}
    assert len(bad["images"]) == 6
    assert set(bad["images"]) <= names
    # The state before it is whole: without the poison the run goes on and ends as if nothing had been.
    train(tmp_path, **work["arguments"])
    assert_equal_weights(work["folder"], tmp_path)


def test_who_follows_leaves_a_loss_that_is_not_finite_to_the_leader(tmp_path: Path, work: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before = loop_module.Loop.look

        def look(self: Any, log: Any) -> Any:
            losses = [torch.full_like(each.losses, torch.nan) for each in self._recent]
            self._recent = [dataclasses.replace(e, losses=n) for e, n in zip(self._recent, losses, strict=True)]
            self.setting = dataclasses.replace(self.setting, place=RankInfo(1, 2))
            assert before(self, None)["steps"] == len(losses)
            assert not (self.setting.folder / "non-finite-batch.json").exists()
            raise InterruptedError("seen")

        patch.setattr(loop_module.Loop, "look", look)
        with pytest.raises(InterruptedError, match="seen"):
            train(tmp_path, **work["arguments"])


def test_a_whole_body_mask_that_nothing_teaches_is_named(tmp_path: Path, work: dict[str, Any]) -> None:
    config = small_training(epochs=1, ema=0)
    for number, changes in enumerate(({"loss": LossConfig(balance=0)}, {"masks": None}, {})):
        notes = Notes()
        train(tmp_path / str(number), **work["arguments"] | {"config": config, "tests": ()} | changes, progress=notes)
        assert any("nothing teaches the body mask" in said for said in notes.said) == bool(changes)


def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path, work: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before = loop_module.backward
        calls = 0

        def poison(model: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            found = before(model, *arguments, **options)
            if calls == 3:
                next(model.parameters()).grad.fill_(torch.inf)
            return found

        patch.setattr(loop_module, "backward", poison)
        with pytest.raises(DataError, match="the gradient is not finite at step 3"):
            train(tmp_path, **work["arguments"])
    train(tmp_path, **work["arguments"])
    assert_equal_weights(work["folder"], tmp_path)


def test_a_kill_while_the_state_is_cleared_away_loses_nothing(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **_: object) -> None:
        (folder / "state.safetensors").unlink(missing_ok=True)
        if folder.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **work["arguments"])
    monkeypatch.setattr(run_module, "_train", lambda *_, **__: pytest.fail("trained again"))
    report = train(tmp_path, **work["arguments"])
    assert report.steps == work["report"].steps
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in work["folder"].iterdir()} - {
        "curves.png"
    }


def test_the_best_network_is_calibrated_once(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = run_module.calibrate, []
    monkeypatch.setattr(run_module, "calibrate", lambda *a, **k: calls.append(1) or before(*a, **k))
    report = train(tmp_path, **work["arguments"])
    assert len(calls) == report.epochs + 1
    assert (tmp_path / "best.safetensors").read_bytes() == (work["folder"] / "best.safetensors").read_bytes()


def test_exhausted_memory_ends_with_advice_and_a_state_to_go_on_from(tmp_path: Path, work: dict[str, Any]) -> None:
    def exhausted() -> None:
        raise torch.OutOfMemoryError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, exhausted)
        with pytest.raises(DeviceError, match="the last state at step 3 is kept") as caught:
            train(tmp_path, **work["arguments"])
    assert "train.accumulate=2" in (caught.value.hint or "")
    train(tmp_path, **work["arguments"])
    assert_equal_weights(work["folder"], tmp_path)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def test_images_that_cannot_be_fetched_for_want_of_memory_are_told(tmp_path: Path, work: dict[str, Any]) -> None:
    fetch = Feeder.batches

    def fetched(self: Feeder, plans: Any, rows: Any) -> Any:
        feed = fetch(self, plans, rows)
        yield next(feed)
        out_of_memory()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feeder, "batches", fetched)
        with pytest.raises(
            DeviceError, match="step 2 of 4 could not be finished, and the last state at step 1 is kept"
        ) as caught:
            train(tmp_path, **work["arguments"])
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    train(tmp_path, **work["arguments"])
    assert_equal_weights(work["folder"], tmp_path)


def test_a_batch_that_the_feeding_thread_has_no_memory_for_is_told(tmp_path: Path, work: dict[str, Any]) -> None:
    config = small_training(eval_every=1, image_budget_gb=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feeder, "_gather", out_of_memory)
        with pytest.raises(DeviceError, match="step 1 of 4 could not be finished"):
            train(tmp_path, **work["arguments"] | {"config": config})


@pytest.mark.parametrize("what", ["forward_model", "look", "_end_epoch"])
def test_memory_that_ends_elsewhere_in_the_loop_is_told(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(loop_module.Loop, what, out_of_memory)
    with pytest.raises(DeviceError, match="could not be finished"):
        train(tmp_path, **work["arguments"])


def test_an_evaluation_without_room_is_told(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_module, "embed", out_of_memory)
    with pytest.raises(DeviceError, match="the test images' features") as caught:
        train(tmp_path, **work["arguments"])
    assert "after epoch 1" in caught.value.message
    assert "train.eval_every=0" in (caught.value.hint or "")


@pytest.mark.parametrize(("size", "accumulate", "images", "advised"), [(1, 1, 18, 2), (1, 2, 9, 3), (3, 2, 3, 3)])
def test_advice_against_exhausted_memory_can_be_followed(size: int, accumulate: int, images: int, advised: int) -> None:
    config = small_training(identities=6, instances=3, accumulate=accumulate)
    setting = SimpleNamespace(
        place=RankInfo(rank=size - 1, world_size=size), device=torch.device("cuda", 0), size=(64, 32)
    )
    loop = SimpleNamespace(config=config, setting=setting, step=3, total=4, _size=lambda: "64x32", _kept=lambda: "kept")
    loop._unrecorded = lambda: loop_module.Loop._unrecorded(loop)  # type: ignore[arg-type]
    error = loop_module.Loop._out_of_memory(loop)  # type: ignore[arg-type]
    assert f"{images} images of 64x32 a forward" in error.message
    assert f"train.accumulate={advised} " in (error.hint or "")
    assert ("train.cuda_graph=false" in (error.hint or "")) == (size == 1), "several processes record nothing"


def test_a_network_without_room_is_told(tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.Targets, "to", out_of_memory)
    with pytest.raises(DeviceError, match="the network and its data do not fit into the memory of cpu"):
        train(tmp_path, **work["arguments"])


def test_a_calibration_without_room_keeps_what_was_trained(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "calibrate", out_of_memory)
        with pytest.raises(DeviceError, match="calibration does not fit into the memory of cpu") as caught:
            train(tmp_path, **work["arguments"] | {"tests": ()})
    assert "goes on from there" in (caught.value.hint or "")
    # From there: no step is taken again.
    monkeypatch.setattr(loop_module.Loop, "advance", out_of_memory)
    train(tmp_path, **work["arguments"] | {"tests": ()})
    assert_equal_weights(work["folder"], tmp_path)


def test_machines_without_a_common_folder_are_told(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(found: list[str], **_: object) -> None:
        found[0] = str(tmp_path / "on-another-machine.h5")

    monkeypatch.setattr(run_module.dist, "broadcast_object_list", elsewhere)
    arguments = work["arguments"]
    dataset: Dataset = arguments["dataset"]
    records = {record.path: record for record in dataset.split("train")}
    place = RankInfo(rank=1, world_size=2)
    with pytest.raises(DataError, match="process 1 of 2 does not see") as caught:
        run_module._images(records, dataset, arguments["model"], arguments["config"], tmp_path / "cache", place, SILENT)
    assert "a disk that they share" in (caught.value.hint or "")
    assert not (tmp_path / "cache").exists(), "only the first process decodes"


def test_processes_at_different_steps_are_stopped(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "same_everywhere", lambda number: False)
    with pytest.raises(DataError, match="different steps"):
        train(tmp_path, **work["arguments"])
    assert not (tmp_path / "metrics.jsonl").exists()


def test_accumulation_trains(tmp_path: Path, work: dict[str, Any]) -> None:
    config = small_training(epochs=1, accumulate=3)
    train(tmp_path, **work["arguments"] | {"config": config})
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "step"]
    assert len(lines) == 2
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_bf16_trains(tmp_path: Path, work: dict[str, Any]) -> None:
    train(tmp_path, **work["arguments"] | {"config": small_training(epochs=1, amp="bf16")})
    assert all(np.isfinite(line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "step")


def test_what_cannot_be_trained_is_explained(tmp_path: Path, work: dict[str, Any]) -> None:
    arguments = work["arguments"]
    dataset: Dataset = arguments["dataset"]
    only_tests = Dataset(dataset.kind, dataset.name, dataset.root, dataset.split("query"))
    with pytest.raises(DataError, match="no images of the split"):
        train(tmp_path / "a", **arguments | {"dataset": only_tests})
    with pytest.raises(DataError, match="6 identities, a batch needs 7"):
        train(tmp_path / "b", **arguments | {"config": small_training(identities=7)})
    with pytest.raises(DeviceError, match="fp16 does not work on the CPU"):
        train(tmp_path / "c", **arguments | {"config": small_training(amp="fp16")})
    nothing = Dataset(dataset.kind, "empty", dataset.root, ())
    with pytest.raises(DataError, match="0 queries"):
        train(tmp_path / "d", **arguments | {"tests": [nothing]})
    with pytest.raises(WeightsError, match="does not exist"):
        train(tmp_path / "e", **arguments | {"model": small_model(weights=str(tmp_path / "none.pth"))})


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "board") as log:
        for step in (1, 2):
            log.write("step", step=step, epoch=1, values={"loss": 1.0 / step, "names": "no number"})
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert events.Tags()["scalars"] == ["step/loss"]
    assert [(each.step, each.value) for each in events.Scalars("step/loss")] == [(1, 1.0), (2, 0.5)]


def test_a_missing_tensorboard_is_explained(
    tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed"):
        train(tmp_path, **work["arguments"] | {"config": small_training(tensorboard=True)})


def test_a_failing_compiler_only_warns(tmp_path: Path, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object, **options: object) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    notes = Notes()
    config = small_training(eval_every=1, compile=True)
    train(tmp_path, **work["arguments"] | {"config": config}, progress=notes)
    assert any("torch.compile failed" in said and "no C++ compiler" in said for said in notes.said)
    assert_equal_weights(work["folder"], tmp_path)

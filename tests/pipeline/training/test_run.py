"""A whole training on a tiny data set: what it leaves and what it reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets.images import read_image
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError, DeviceError, WeightsError
from pipeline.formats.checkpoint import read_meta
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.embed import embed
from pipeline.model.sgsfa import SGSFA
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT
from pipeline.training import run as run_module
from pipeline.training import setup as preparation
from pipeline.training.metrics_log import read_metrics
from pipeline.training.run import train
from tests.helpers.training import make_people, small_model, small_training
from tests.helpers.training_runs import Straight, metrics

pytestmark = pytest.mark.usefixtures("no_curves")


def test_train__leaves_checkpoint_log_curves_and_report(straight: Straight) -> None:
    folder, report = straight.folder, straight.report
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
        "training.json",
    ]
    assert (report.images, report.identities, report.without_mask, report.steps) == (18, 6, 0, 4)
    meta = read_meta(folder / "model.safetensors")
    assert (meta.num_classes, meta.trained_on, meta.epochs) == (6, "folder:people", 2)
    assert meta.thresholds == report.thresholds
    assert len(report.thresholds) == 7
    assert all(0 < tau < 1 for tau in report.thresholds[:4])
    assert meta.provenance.values["train.lr"] == straight.arguments["config"].lr
    assert meta.provenance.values["identities"] == meta.identities
    assert report.best is not None
    assert read_meta(folder / "best.safetensors").epochs == report.best[0]


def test_train__logs_steps_epochs_evaluations_and_calibration(straight: Straight) -> None:
    lines = list(read_metrics(straight.folder / "metrics.jsonl"))
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2]
    assert lines[-1]["kind"] == "calibration"
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "step")
    assert all(0 <= line["mAP"] <= 1 for line in lines if line["kind"] == "evaluation")
    assert set(next(line for line in lines if line["kind"] == "epoch")["visibility_accuracy"]) >= {"head", "top"}


def test_train__finished_training_is_not_repeated(straight: Straight) -> None:
    before = (straight.folder / "model.safetensors").stat().st_mtime_ns
    assert train(straight.folder, **straight.arguments) == straight.report
    assert (straight.folder / "model.safetensors").stat().st_mtime_ns == before


def test_train__kill_while_the_state_is_removed_loses_nothing(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **_: object) -> None:
        (folder / "state.safetensors").unlink(missing_ok=True)
        if folder.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **straight.arguments)
    monkeypatch.setattr(run_module, "prepare", lambda *_: pytest.fail("trained again"))
    assert train(tmp_path, **straight.arguments).steps == straight.report.steps
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {path.name for path in straight.folder.iterdir()} - {"curves.png"}


def test_train__without_masks_and_as_baseline(tmp_path: Path, straight: Straight) -> None:
    config = small_training(epochs=1, ema=0)
    bare = train(tmp_path / "bare", **straight.changed(masks=None, config=config))
    assert bare.without_mask == 18
    assert bare.thresholds == (0.0,) * 7
    model = small_model(kind="baseline", global_dim=8)
    baseline = train(tmp_path / "baseline", **straight.changed(model=model, config=config))
    assert baseline.without_mask == 0
    assert all(line["masks"] == 0 < line["global_feature"] for line in metrics(tmp_path / "baseline", "step"))


@pytest.mark.parametrize("change", [{"accumulate": 3}, {"amp": "bf16"}], ids=str)
def test_train__losses_are_finite(tmp_path: Path, straight: Straight, change: dict[str, object]) -> None:
    train(tmp_path, **straight.changed(config=small_training(epochs=1, **change)))
    losses = [line["loss"] for line in metrics(tmp_path, "step")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("with_masks", [True, False])
def test_train__features_without_necks_are_centred(tmp_path: Path, straight: Straight, with_masks: bool) -> None:
    folder = straight.folder
    if not with_masks:
        folder = tmp_path / "bare"
        train(folder, **straight.changed(masks=None, config=small_training(epochs=1)))
    network, _ = load_checkpoint(folder / "model.safetensors")
    assert isinstance(network, SGSFA)
    assert network.part_centres is not None
    assert network.global_centre is not None
    centres, global_centre = network.part_centres.clone(), network.global_centre.clone()
    records = sorted(straight.dataset.split("train"), key=lambda record: record.path)
    images = torch.from_numpy(np.stack([read_image(straight.dataset.path_of(record)) for record in records]))
    centred = embed(network, images)
    network.reset_centres()
    bare = embed(network, images)
    # Every mask of `make_masks` is the same, and shows all parts.
    for part in range(7):
        shown = bare.parts[:, part].any(1)
        assert shown.any() or part > 3
        if shown.any():
            assert torch.allclose(bare.parts[shown, part].mean(0), centres[part], atol=1e-5)
        assert torch.allclose(centred.parts[shown, part], bare.parts[shown, part] - centres[part], atol=1e-6)
        assert not (part > 3 and centred.parts[~shown, part].any())
    assert torch.allclose(bare.global_feature.mean(0), global_centre, atol=1e-5)
    assert torch.allclose(centred.global_feature, bare.global_feature - global_centre, atol=1e-6)


def test_train__unreadable_images_are_left_out(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    dataset = make_people(tmp_path / "people", test=1)
    broken = dataset.split("train")[3]
    dataset.path_of(broken).write_bytes(b"no image")
    arguments = {"masks": None, "model": small_model(), "loss": run_module.LossConfig()}
    report = train(tmp_path / "run", dataset=dataset, **arguments, config=small_training(epochs=1, ema=0))
    assert [each.path for each in report.failed] == [broken.path]
    assert report.images == 17
    assert broken.path in logged.text


def test_train__wrong_inputs_are_explained(tmp_path: Path, straight: Straight) -> None:
    dataset = straight.dataset
    only_tests = Dataset(dataset.kind, dataset.name, dataset.root, dataset.split("query"))
    with pytest.raises(DataError, match="no images of the split"):
        train(tmp_path / "a", **straight.changed(dataset=only_tests))
    with pytest.raises(DataError, match=r"6 identities.* 7"):
        train(tmp_path / "b", **straight.changed(config=small_training(identities=7)))
    with pytest.raises(DeviceError, match="fp16"):
        train(tmp_path / "c", **straight.changed(config=small_training(amp="fp16")))
    nothing = Dataset(dataset.kind, "empty", dataset.root, ())
    with pytest.raises(DataError, match="0 queries"):
        train(tmp_path / "d", **straight.changed(tests=[nothing]))
    missing = tmp_path / "none.pth"
    with pytest.raises(WeightsError) as caught:
        train(tmp_path / "e", **straight.changed(model=small_model(weights=str(missing))))
    assert caught.value.where == str(missing)


def test_train__machines_without_a_common_folder_are_reported(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "on-another-machine.h5"
    monkeypatch.setattr(preparation, "broadcast", lambda _: elsewhere)
    model, config = straight.arguments["model"], straight.arguments["config"]
    with pytest.raises(DataError, match="process 1 of 2") as caught:
        preparation._open_store(
            tmp_path / "cache", straight.dataset, model=model, config=config, ranks=RankInfo(1, 2), progress=SILENT
        )
    assert caught.value.where == str(elsewhere)
    assert not (tmp_path / "cache").exists(), "only rank 0 decodes"


def test_train__processes_at_different_steps_are_stopped(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "same_on_all_ranks", lambda number: False)
    with pytest.raises(DataError, match="different steps"):
        train(tmp_path, **straight.arguments)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_train__failing_compiler_only_warns(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def broken(model: object, **options: object) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    train(tmp_path, **straight.changed(config=small_training(eval_every=1, compile=True)))
    assert "no C++ compiler" in logged.text
    assert metrics(tmp_path, "evaluation") == metrics(straight.folder, "evaluation")

"""What a training starts from: masks, warnings about them, and checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.datasets.images import PADDING, write_image
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError, WeightsError
from pipeline.formats.checkpoint import read_meta
from pipeline.formats.masks import PART_NAMES
from pipeline.model.checkpoint import load_checkpoint
from pipeline.runtime.files import sha256_file
from pipeline.training import evaluator as evaluator_module
from pipeline.training import run as run_module
from pipeline.training.calibrate import NEVER
from pipeline.training.context import TrainContext
from pipeline.training.run import train
from tests.helpers.training import HEIGHT, WIDTH, make_masks, make_people, paint, small_model, small_training
from tests.helpers.training_runs import Straight, assert_equal_weights, interrupt, train_until, weights

pytestmark = pytest.mark.usefixtures("no_curves")

SHORT = small_training(epochs=1, ema=0)
# A rate so small that training leaves the starting weights.
STILL = {"epochs": 1, "ema": 0, "lr": 1e-30, "weight_decay": 0}


def test_masks__images_without_one_are_counted(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture
) -> None:
    masks = make_masks(tmp_path / "masks.h5", straight.dataset, failed=5)
    report = train(tmp_path / "run", **straight.changed(masks=masks, config=SHORT))
    assert report.without_mask == 5
    assert "5 of 18 training images" in logged.text


def test_masks__part_that_the_label_set_lacks_is_left_out(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture
) -> None:
    masks = make_masks(tmp_path / "masks.h5", straight.dataset, absent=("shoes",))
    report = train(tmp_path / "run", **straight.changed(masks=masks, config=SHORT))
    assert "lacks shoes" in logged.text
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


@pytest.mark.parametrize(("absent", "empty", "said"), [(PART_NAMES, (), "no part"), ((), PART_NAMES, "empty")])
def test_masks__that_supervise_nothing_are_refused(
    tmp_path: Path, straight: Straight, absent: tuple[str, ...], empty: tuple[str, ...], said: str
) -> None:
    masks = make_masks(tmp_path / "masks.h5", straight.dataset, absent=absent, empty=empty)
    with pytest.raises(DataError, match=said) as caught:
        train(tmp_path / "run", **straight.changed(masks=masks))
    assert caught.value.where == str(masks)


def test_masks__follow_padded_images(tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_people(tmp_path / "people")
    first = min(dataset.split("train"), key=lambda record: record.path)
    write_image(dataset.path_of(first), paint(first.pid, 0)[: HEIGHT // 2])
    tested: list[str] = []
    decode = evaluator_module.decode_batches
    monkeypatch.setattr(evaluator_module, "decode_batches", lambda *a, **k: tested.append(k["fit"]) or decode(*a, **k))
    contexts: list[TrainContext] = []
    made = run_module.Trainer
    monkeypatch.setattr(
        run_module, "Trainer", lambda network, context: contexts.append(context) or made(network, context)
    )
    changed = straight.changed(
        dataset=dataset, tests=[dataset], model=small_model(fit="pad"), config=small_training(epochs=1, eval_every=1)
    )
    train(tmp_path / "run", **changed)
    (context,) = contexts
    row = context.store.names.index(first.path)
    half = context.masks.body.shape[2] // 2
    assert context.masks.body[row, :, :half].any()
    assert not context.masks.body[row, :, half:].any()
    assert (context.store.images[row, HEIGHT // 2 :] == PADDING).all()
    others = [i for i in range(len(context.store.names)) if i != row]
    assert context.masks.body[others][:, :, half:].flatten(1).any(1).all()
    assert set(tested) == {"pad"}
    assert read_meta(tmp_path / "run" / "model.safetensors").model.fit == "pad"


def test_warnings__parts_that_no_mask_shows_and_single_images(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture
) -> None:
    dataset = straight.dataset
    masks = make_masks(tmp_path / "masks.h5", dataset, empty=("head", "shoes"))
    first = dataset.split("train")[0].pid
    dropped = [record for record in dataset.split("train") if record.pid == first][1:]
    fewer = dataclasses.replace(dataset, records=tuple(each for each in dataset.records if each not in dropped))
    train(tmp_path / "run", **straight.changed(dataset=fewer, masks=masks, config=SHORT))
    assert "no mask shows head, shoes" in logged.text
    assert "1 identities have a single image" in logged.text


@pytest.mark.parametrize("changes", [{"loss": LossConfig(balance=0)}, {"masks": None}, {}], ids=["loss", "none", "all"])
def test_warnings__body_mask_without_supervision(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    train(tmp_path, **straight.changed(**{"config": SHORT, "tests": (), **changes}))
    assert ("body mask is not supervised" in logged.text) == bool(changes)


def test_start__same_identities_keep_their_classifiers(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture
) -> None:
    first, before = straight.folder / "model.safetensors", weights(straight.folder)
    config = small_training(start=str(first), **STILL)
    larger = small_model(height=HEIGHT * 2, width=WIDTH * 2, weights="imagenet")  # not fetched, because not needed
    train(tmp_path / "larger", **straight.changed(config=config, model=larger))
    assert str(first) in logged.text
    assert "classifiers are copied" in logged.text
    origin = read_meta(tmp_path / "larger" / "model.safetensors").started_from
    assert origin == f"folder:people ({sha256_file(first)[:12]})"
    assert read_meta(first).started_from == ""
    after = weights(tmp_path / "larger")
    learnt = [name for name in before if not any(word in name for word in ("running", "tracked", "centre"))]
    assert any(name.endswith("classify.weight") for name in learnt)
    assert all(torch.allclose(before[name], after[name], atol=1e-12) for name in learnt)


@pytest.mark.parametrize("change", ["more identities", "other identities"])
def test_start__other_identities_get_new_classifiers(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture, change: str
) -> None:
    first, before = straight.folder / "model.safetensors", weights(straight.folder)
    others = make_people(tmp_path / "people", train=7 if change == "more identities" else 6)
    if change == "other identities":
        # The same names and number of identities, but two of them are exchanged.
        swapped = [dataclasses.replace(each, pid={1: 2, 2: 1}.get(each.pid, each.pid)) for each in others.records]
        others = Dataset(others.kind, others.name, others.root, tuple(swapped))
    masks = make_masks(tmp_path / "others.h5", others, absent=("shoes",))
    config = small_training(start=str(first), **STILL)
    train(tmp_path / "new", **straight.changed(config=config, dataset=others, masks=masks))
    assert "classifiers are new" in logged.text
    after = weights(tmp_path / "new")
    classifiers = {name for name in before if name.endswith("classify.weight")}
    assert not any(torch.equal(before[name], after[name]) for name in classifiers)
    assert after["trained_parts"].tolist() == [1, 1, 1, 0]
    words = ("running", "tracked", "centre", "classify", "trained_parts")
    learnt = [name for name in before if not any(word in name for word in words)]
    assert all(torch.equal(before[name], after[name]) for name in learnt)


def test_start__resumed_run_ends_bit_equal(tmp_path: Path, straight: Straight) -> None:
    first = straight.folder / "model.safetensors"
    # Without an average, evaluations set the centres of the very network that is trained.
    config = small_training(epochs=2, ema=0, eval_every=1, checkpoint_minutes=0, start=str(first))
    arguments = straight.changed(config=config)
    train(tmp_path / "straight", **arguments)
    train_until(tmp_path / "stopped", 2, interrupt, arguments)
    train(tmp_path / "stopped", **arguments)
    assert_equal_weights(tmp_path / "straight", tmp_path / "stopped")
    assert read_meta(tmp_path / "stopped" / "model.safetensors").started_from


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"part_dim": 16}, r"model\.part_dim = 8 instead of 16"),
        ({"kind": "baseline"}, r"model\.kind = sgsfa instead of baseline"),
    ],
)
def test_start__checkpoint_of_another_network_is_refused(
    tmp_path: Path, straight: Straight, model: dict[str, object], named: str
) -> None:
    first = straight.folder / "model.safetensors"
    with pytest.raises(WeightsError, match=named) as caught:
        train(tmp_path, **straight.changed(config=small_training(start=str(first)), model=small_model(**model)))
    assert caught.value.where == str(first)


def test_start__missing_checkpoint_is_named(tmp_path: Path, straight: Straight) -> None:
    with pytest.raises(WeightsError, match="not found") as caught:
        train(tmp_path, **straight.changed(config=small_training(start=str(tmp_path / "none"))))
    assert caught.value.where == str(tmp_path / "none")

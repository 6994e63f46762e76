"""A teacher of masks: rendered images, or occluded training images, beside each batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.normalise import normalise
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT
from pipeline.training.augment import AugmentParams, augment, used_augmentations
from pipeline.training.context import TeacherData
from pipeline.training.occluders import occluder_tiles
from pipeline.training.run import train
from pipeline.training.setup import prepare
from pipeline.training.teacher import lessons
from pipeline.training.trainer import Trainer
from tests.helpers.training import make_masks, make_people, small_model, small_training
from tests.helpers.training_runs import assert_equal_weights, kill, metrics, train_until

pytestmark = pytest.mark.usefixtures("no_curves")

UNTAUGHT = {"config": small_training(checkpoint_minutes=0), "teacher": None}


@pytest.fixture(scope="module", params=["rendered", "occluded"])
def arguments(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A training with two rendered or occluded images beside each batch of six."""
    root = tmp_path_factory.mktemp("teacher")
    dataset, rendered = make_people(root / "people"), make_people(root / "rendered", train=4, test=1)
    teacher = TeacherData(rendered, lambda path: make_masks(path, rendered, failed=2))
    return {
        "dataset": dataset,
        "masks": make_masks(root / "masks.h5", dataset, failed=2),
        "model": small_model(),
        "loss": LossConfig(),
        "config": small_training(mask_teacher=0.3, checkpoint_minutes=0),
        "teacher": teacher if request.param == "rendered" else None,
    }


def trainer(folder: Path, arguments: dict[str, Any]) -> Trainer:
    network, context = prepare(folder, **arguments, ranks=RankInfo(), progress=SILENT)
    return Trainer(network, context)


def first_step(folder: Path, arguments: dict[str, Any]) -> tuple[Trainer, dict[str, float]]:
    one = trainer(folder, arguments)
    one.stepper.prepare()
    plan, images = next(one._context.images.batches(one.plans(), lambda plan: plan.rows))
    one.advance(plan, images, next(lessons(one._context, 0, 1)))
    return one, one.losses.read()[0][1]


def test_teacher__adds_only_a_mask_loss(tmp_path: Path, arguments: dict[str, Any]) -> None:
    plain, without = first_step(tmp_path / "a", arguments | UNTAUGHT)
    taught, losses = first_step(tmp_path / "b", arguments)
    for name in ("triplet", "masks", "identity", "global_feature"):
        assert losses[name] == without[name], name
    assert losses["mask_teacher"] > 0
    assert losses["loss"] == pytest.approx(without["loss"] + losses["mask_teacher"], rel=1e-6)
    # Running statistics are those of the batch alone.
    one, two = plain.stepper.network.state_dict(), taught.stepper.network.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one if "running" in name)
    assert not torch.equal(one["local_attention.heads.weight"], two["local_attention.heads.weight"])


def test_teacher__gradient_reaches_no_classifier(tmp_path: Path, arguments: dict[str, Any]) -> None:
    one = trainer(tmp_path, arguments)
    one.stepper.prepare()
    lesson = next(lessons(one._context, 0, 1))
    assert lesson is not None
    one.stepper._teach(lesson)
    reached = {name.partition(".")[0] for name, p in one.stepper.network.named_parameters() if p.grad is not None}
    assert reached == {"backbone", "body_attention", "local_attention"}


def test_lessons__are_a_function_of_the_step_and_divide_among_processes(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    alone = trainer(tmp_path, arguments)._context
    later = list(lessons(alone, 2, 4))
    found = list(lessons(alone, 0, 4))
    assert [len(each.rows) for each in found if each] == [2] * 4
    for one, two in zip(found[2:], later, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.params, two.params)
    assert alone.teacher is not None
    assert all(bool(alone.teacher.masks.has_mask[each.rows].all()) for each in found if each), "failed ones teach not"
    shares = []
    for rank in range(2):
        context = trainer(tmp_path, arguments)._context
        object.__setattr__(context, "ranks", RankInfo(rank, 2, rank, 2))
        share = next(lessons(context, 0, 1))
        assert share is not None
        shares.append(share)
    whole = found[0]
    assert whole is not None
    assert torch.equal(torch.cat([each.rows for each in shares]), whole.rows)
    assert torch.equal(torch.cat([each.params for each in shares], 1), whole.params)


def test_teacher__resumes_bit_equal(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "straight", **arguments)
    (tmp_path / "killed").mkdir()
    train_until(tmp_path / "killed", 2, kill, arguments)
    train(tmp_path / "killed", **arguments)
    assert_equal_weights(tmp_path / "straight", tmp_path / "killed")
    assert all("mask_teacher" in line for line in metrics(tmp_path / "killed", "step"))


def test_teacher__share_of_zero_changes_nothing(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "without", **arguments | UNTAUGHT)
    train(tmp_path / "zero", **arguments | {"config": UNTAUGHT["config"]})
    assert_equal_weights(tmp_path / "without", tmp_path / "zero")
    assert "mask_teacher" not in metrics(tmp_path / "zero", "step")[0]


def test_teacher__baseline_ignores_it(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path, **arguments | {"model": small_model(kind="baseline")})
    network, _ = load_checkpoint(tmp_path / "model.safetensors")
    assert network.config.kind == "baseline"


def test_lessons__of_training_images_hide_what_their_masks_lose(tmp_path: Path) -> None:
    dataset = make_people(tmp_path / "people")
    _, context = prepare(
        tmp_path / "state",
        dataset,
        make_masks(tmp_path / "masks.h5", dataset),
        model=small_model(),
        loss=LossConfig(),
        config=small_training(mask_teacher=1.0, flip=0.0, pad=0),
        teacher=None,
        ranks=RankInfo(),
        progress=SILENT,
    )
    assert context.teacher is not None
    used, tiles = used_augmentations(context.teacher.config), occluder_tiles()
    changed, images = 0, 0
    for lesson in lessons(context, 0, 40):
        assert lesson is not None
        before, params = context.masks.rows(lesson.rows), AugmentParams.unpacked(lesson.params, used)
        pixels, after = augment(lesson.images, before, params, tiles)
        whole = normalise(lesson.images.permute(0, 3, 1, 2).float())
        lost = (after.parts - before.parts.float() / 255).abs().amax((1, 2, 3)) > 0.05
        assert not (lost & (pixels == whole).flatten(1).all(1)).any(), "pixels change where masks do"
        changed, images = changed + int(lost.sum()), images + len(lost)
    assert 0.5 < changed / images < 0.9


def test_teacher__training_images_without_masks_teach_nothing(tmp_path: Path) -> None:
    dataset = make_people(tmp_path / "people")
    untaught, taught = small_training(), small_training(mask_teacher=0.3)
    for name, config in (("without", untaught), ("with", taught)):
        train(tmp_path / name, dataset=dataset, masks=None, model=small_model(), loss=LossConfig(), config=config)
    assert_equal_weights(tmp_path / "without", tmp_path / "with")


def test_teacher__other_images_do_not_resume(tmp_path: Path, arguments: dict[str, Any]) -> None:
    one = trainer(tmp_path, arguments)
    other = arguments["config"].model_copy(update={"teacher_data": "synthetic:elsewhere"})
    two = prepare(tmp_path / "other", **arguments | {"config": other}, ranks=RankInfo(), progress=SILENT)[1]
    assert one._context.meta.provenance.diff(two.meta.provenance)

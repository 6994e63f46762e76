"""Extra images of each step: occluded copies of training images, rendered images that supervise masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.normalise import normalise
from pipeline.model.sgsfa import SGSFA
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT
from pipeline.training.augment import AugmentParams, augment, used_augmentations
from pipeline.training.context import TeacherData
from pipeline.training.extra import extra_batches
from pipeline.training.occluders import occluder_tiles
from pipeline.training.run import train
from pipeline.training.setup import prepare
from pipeline.training.step import Batch
from pipeline.training.trainer import Trainer
from tests.helpers.training import make_masks, make_people, small_model, small_training
from tests.helpers.training_runs import assert_equal_weights, kill, metrics, train_until

pytestmark = pytest.mark.usefixtures("no_curves")

WITHOUT = {"config": small_training(checkpoint_minutes=0), "teacher": None}


@pytest.fixture(scope="module", params=["mask_teacher", "occluded_copies"])
def arguments(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A training with four extra images for each batch of six."""
    root = tmp_path_factory.mktemp("teacher")
    dataset, rendered = make_people(root / "people"), make_people(root / "rendered", train=4, test=1)
    teacher = TeacherData(rendered, lambda path: make_masks(path, rendered, failed=2))
    return {
        "dataset": dataset,
        "masks": make_masks(root / "masks.h5", dataset, failed=2),
        "model": small_model(),
        "loss": LossConfig(),
        "config": small_training(**{request.param: 0.6}, checkpoint_minutes=0),
        "teacher": teacher if request.param == "mask_teacher" else None,
    }


def trainer(folder: Path, arguments: dict[str, Any]) -> Trainer:
    network, context = prepare(folder, **arguments, ranks=RankInfo(), progress=SILENT)
    return Trainer(network, context)


def name_of(one: Trainer) -> str:
    assert one._context.extra is not None
    return one._context.extra.name


def first_step(folder: Path, arguments: dict[str, Any]) -> tuple[Trainer, dict[str, float]]:
    one = trainer(folder, arguments)
    one.stepper.prepare()
    plan, images = next(one._context.images.batches(one.plans(), lambda plan: plan.rows))
    one.advance(plan, images, next(extra_batches(one._context, 0, 1)))
    return one, one.losses.read()[0][1]


def test_extra__leaves_losses_and_statistics_of_the_batch_alone(tmp_path: Path, arguments: dict[str, Any]) -> None:
    plain, without = first_step(tmp_path / "a", arguments | WITHOUT)
    more, losses = first_step(tmp_path / "b", arguments)
    name_of_loss = name_of(more)
    for name in ("triplet", "masks", "identity", "global_feature"):
        assert losses[name] == without[name], name
    assert losses[name_of_loss] > 0
    assert losses["loss"] == pytest.approx(without["loss"] + losses[name_of_loss], rel=1e-6)
    # Running statistics are those of the batch alone.
    one, two = plain.stepper.network.state_dict(), more.stepper.network.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one if "running" in name)
    assert not torch.equal(one["local_attention.heads.weight"], two["local_attention.heads.weight"])


def test_extra__trains_classifiers_only_with_identities(tmp_path: Path, arguments: dict[str, Any]) -> None:
    one = trainer(tmp_path, arguments)
    one.stepper.prepare()
    batch = next(extra_batches(one._context, 0, 1))
    assert batch is not None
    one.stepper._learn_extra(batch)
    reached = {name.partition(".")[0] for name, p in one.stepper.network.named_parameters() if p.grad is not None}
    masks = {"backbone", "body_attention", "local_attention"}
    assert masks <= reached
    assert (reached == masks) is (name_of(one) == "mask_teacher")


def test_extra__batches_are_a_function_of_the_step_and_divide_among_processes(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    alone = trainer(tmp_path, arguments)._context
    later = list(extra_batches(alone, 2, 4))
    found = list(extra_batches(alone, 0, 4))
    assert [len(each.rows) for each in found if each] == [4] * 4
    for one, two in zip(found[2:], later, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.params, two.params)
    assert alone.extra is not None
    assert all(bool(alone.extra.masks.has_mask[each.rows].all()) for each in found if each)
    shares = []
    for rank in range(2):
        context = trainer(tmp_path, arguments)._context
        object.__setattr__(context, "ranks", RankInfo(rank, 2, rank, 2))
        share = next(extra_batches(context, 0, 1))
        assert share is not None
        shares.append(share)
    whole = found[0]
    assert whole is not None
    assert torch.equal(torch.cat([each.rows for each in shares]), whole.rows)
    assert torch.equal(torch.cat([each.params for each in shares], 1), whole.params)


def test_extra__resumes_bit_equal(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "straight", **arguments)
    (tmp_path / "killed").mkdir()
    train_until(tmp_path / "killed", 2, kill, arguments)
    train(tmp_path / "killed", **arguments)
    assert_equal_weights(tmp_path / "straight", tmp_path / "killed")
    name = "mask_teacher" if arguments["teacher"] else "occluded_copies"
    assert all(name in line for line in metrics(tmp_path / "killed", "step"))


def test_mask_teacher__share_of_zero_changes_nothing(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "without", **arguments | WITHOUT)
    train(tmp_path / "zero", **arguments | {"config": WITHOUT["config"]})
    assert_equal_weights(tmp_path / "without", tmp_path / "zero")
    assert "mask_teacher" not in metrics(tmp_path / "zero", "step")[0]


def test_extra__baseline_has_copies_but_no_mask_teacher(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path, **arguments | {"model": small_model(kind="baseline")})
    network, _ = load_checkpoint(tmp_path / "model.safetensors")
    assert network.config.kind == "baseline"
    line = metrics(tmp_path, "step")[0]
    assert "mask_teacher" not in line
    assert ("occluded_copies" in line) is (arguments["teacher"] is None)


def test_occluded_copies__hide_what_their_masks_lose(tmp_path: Path) -> None:
    dataset = make_people(tmp_path / "people")
    _, context = prepare(
        tmp_path / "state",
        dataset,
        make_masks(tmp_path / "masks.h5", dataset),
        model=small_model(),
        loss=LossConfig(),
        config=small_training(occluded_copies=1.0, flip=0.0, pad=0),
        teacher=None,
        ranks=RankInfo(),
        progress=SILENT,
    )
    assert context.extra is not None
    used, tiles = used_augmentations(context.extra.config), occluder_tiles()
    changed, images = 0, 0
    for batch in extra_batches(context, 0, 40):
        assert batch is not None
        before, params = context.masks.rows(batch.rows), AugmentParams.unpacked(batch.params, used)
        pixels, after = augment(batch.images, before, params, tiles)
        whole = normalise(batch.images.permute(0, 3, 1, 2).float())
        lost = (after.parts - before.parts.float() / 255).abs().amax((1, 2, 3)) > 0.05
        assert not (lost & (pixels == whole).flatten(1).all(1)).any(), "a mask changed but no pixel did"
        changed, images = changed + int(lost.sum()), images + len(lost)
    assert 0.5 < changed / images < 0.9


def test_occluded_copies__without_masks_train_identities(tmp_path: Path) -> None:
    arguments = {
        "dataset": make_people(tmp_path / "people"),
        "masks": None,
        "model": small_model(),
        "loss": LossConfig(),
    }
    train(tmp_path / "copies", **arguments, config=small_training(occluded_copies=0.5))
    assert metrics(tmp_path / "copies", "step")[0]["occluded_copies"] > 0


def test_extra__one_kind_at_a_time() -> None:
    with pytest.raises(ValueError, match="mask_teacher and occluded_copies"):
        small_training(occluded_copies=0.25, mask_teacher=0.25)


def test_occluded_copies__pass_in_pieces_of_two_at_least(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = SGSFA.forward
    monkeypatch.setattr(SGSFA, "forward", lambda self, images: sizes.append(len(images)) or forward(self, images))
    config = arguments["config"].model_copy(update={"mask_teacher": 0.0, "occluded_copies": 0.7, "accumulate": 2})
    one = trainer(tmp_path, arguments | {"config": config, "teacher": None})
    one.stepper.prepare()
    for copies, pieces in ((4, [2, 2]), (2, [2])):
        batch = next(extra_batches(one._context, 0, 1))
        assert batch is not None
        sizes.clear()
        one.stepper._learn_extra(Batch(batch.images[:copies], batch.rows[:copies], batch.params[:, :copies]))
        assert sizes[-len(pieces) :] == pieces

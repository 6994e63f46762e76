"""Stopped, killed and failed runs: resumed, they end with the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.errors import DataError, DeviceError, FormatError, WeightsError
from pipeline.runtime.process_group import RankInfo
from pipeline.training import calibrate as calibrate_module
from pipeline.training import evaluator as evaluator_module
from pipeline.training import run as run_module
from pipeline.training import step as step_module
from pipeline.training.meters import BAD_BATCH_FILE, LossMeter
from pipeline.training.prefetch import Prefetcher
from pipeline.training.run import train
from pipeline.training.step import TrainStep
from pipeline.training.trainer import STATE_FILE, Trainer
from tests.helpers.training import small_model, small_training
from tests.helpers.training_runs import (
    Straight,
    assert_equal_weights,
    at_step,
    interrupt,
    kill,
    kinds,
    metrics,
    out_of_memory,
    train_until,
)

pytestmark = pytest.mark.usefixtures("no_curves")


# In the middle of an epoch, at the end of one (2 steps each, the evaluation follows), and in the last step but one.
@pytest.mark.parametrize(("step", "number"), [(0, signal.SIGUSR1), (1, signal.SIGTERM), (2, signal.SIGHUP)])
def test_resume__after_a_signal_ends_bit_equal(
    tmp_path: Path, straight: Straight, logged: pytest.LogCaptureFixture, step: int, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    try:
        train_until(tmp_path, step, lambda: os.kill(os.getpid(), number), straight.arguments)
    finally:
        signal.signal(number, before)
    assert (tmp_path / "state" / STATE_FILE).is_file()
    assert not (tmp_path / "model.safetensors").exists()
    torch.rand(100)  # whatever the process draws in between
    train(tmp_path, **straight.arguments)
    assert f"step {step + 1} of 4" in logged.text
    assert_equal_weights(straight.folder, tmp_path)
    assert kinds(straight.folder) == kinds(tmp_path)
    assert metrics(straight.folder, "evaluation") == metrics(tmp_path, "evaluation")
    losses = [[line["loss"] for line in metrics(folder, "step")] for folder in (straight.folder, tmp_path)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("module", [calibrate_module, evaluator_module], ids=["calibration", "test"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_resume__stopped_within_an_evaluation_makes_it_first(
    tmp_path: Path, straight: Straight, module: ModuleType, epoch: int
) -> None:
    calls, embed = [], module.embed
    # Batches of the calibration, and of queries and gallery.
    per_evaluation = -(-18 // 6) if module is calibrate_module else 2
    last = (epoch - 1) * per_evaluation + 1

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            interrupt()
        return embed(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **straight.arguments)
    assert len(calls) == last, "it ends between two batches"
    assert len(metrics(tmp_path, "evaluation")) == epoch - 1
    train(tmp_path, **straight.arguments)
    assert_equal_weights(straight.folder, tmp_path)
    assert (tmp_path / "best.safetensors").read_bytes() == (straight.folder / "best.safetensors").read_bytes()
    assert kinds(straight.folder) == kinds(tmp_path)
    assert metrics(straight.folder, "evaluation") == metrics(tmp_path, "evaluation")


@pytest.mark.parametrize("epoch", [1, 2])
def test_resume__signal_at_the_very_end_of_an_evaluation_is_not_lost(
    tmp_path: Path, straight: Straight, epoch: int
) -> None:
    compute, calls = evaluator_module.RankStream.compute, []

    def interrupted(self: Any) -> Any:
        calls.append(compute(self))
        if len(calls) == epoch:
            interrupt()
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        # After the last pause of the evaluation.
        patch.setattr(evaluator_module.RankStream, "compute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **straight.arguments)
    train(tmp_path, **straight.arguments)
    assert_equal_weights(straight.folder, tmp_path)
    assert kinds(straight.folder) == kinds(tmp_path)


def test_resume__failed_evaluation_costs_no_steps_and_is_logged_once(tmp_path: Path, straight: Straight) -> None:
    arguments = straight.changed(config=small_training(eval_every=1, checkpoint_minutes=60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator_module, "embed", out_of_memory)
        with pytest.raises(DeviceError, match="not enough memory"):
            train(tmp_path, **arguments)
    assert len(metrics(tmp_path, "step")) == 2
    # Killed in the first step after the repeated evaluation: it is made again, and its first line is dropped.
    train_until(tmp_path, 2, kill, arguments)
    train(tmp_path, **arguments)
    assert_equal_weights(straight.folder, tmp_path)
    assert kinds(straight.folder) == kinds(tmp_path)


def test_resume__signal_after_the_last_step_is_not_lost(tmp_path: Path, straight: Straight) -> None:
    end_epoch, arguments = Trainer._end_epoch, straight.changed(config=small_training(checkpoint_minutes=60))

    def interrupted(self: Trainer) -> None:
        end_epoch(self)
        if self.step == self.total:
            interrupt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **arguments)
    assert not (tmp_path / "model.safetensors").exists()
    train(tmp_path, **arguments)
    assert_equal_weights(straight.folder, tmp_path)


def test_resume__killed_between_states_repeats_the_lost_steps(tmp_path: Path, straight: Straight) -> None:
    arguments = straight.changed(config=small_training(eval_every=1, checkpoint_minutes=60))
    # Before the first minute has passed, only the state of a first stop is saved.
    train_until(tmp_path, 0, interrupt, arguments)
    train_until(tmp_path, 3, kill, arguments)
    train(tmp_path, **arguments)
    assert_equal_weights(straight.folder, tmp_path)


def test_resume__images_above_the_budget_give_the_same_bits(tmp_path: Path, straight: Straight) -> None:
    train(tmp_path, **straight.changed(config=small_training(eval_every=1, image_budget_gb=1e-6)))
    assert_equal_weights(straight.folder, tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": small_model(part_dim=16)}, "model.part_dim changed from 8 to 16"),
        ({"config": small_training(eval_every=1, lr=0.01)}, "train.lr changed"),
        ({"loss": LossConfig(balance=0.5)}, "loss.balance changed"),
    ],
)
def test_resume__state_of_another_training_is_refused(
    tmp_path: Path, straight: Straight, change: dict[str, Any], named: str
) -> None:
    train_until(tmp_path, 1, interrupt, straight.arguments)
    with pytest.raises(FormatError, match=named) as caught:
        train(tmp_path, **straight.changed(**change))
    assert caught.value.where == str(tmp_path / "state" / STATE_FILE)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (sys.exit, (3,))


@pytest.mark.parametrize("content", [b"", b"no state", pickle.dumps(_Bomb())])
def test_resume__damaged_state_or_pickle_is_refused(tmp_path: Path, straight: Straight, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATE_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match="not a training state"):
        train(tmp_path, **straight.arguments)


def poison_third_call(monkeypatch: pytest.MonkeyPatch, name: str, poison: Any) -> None:
    """Let the third call of a function of `step` return something that is not finite."""
    before, calls = getattr(step_module, name), []

    def poisoned(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        results = before(*arguments, **options)
        return poison(arguments, results) if len(calls) == 3 else results

    monkeypatch.setattr(step_module, name, poisoned)


def test_resume__loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path, straight: Straight) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison_third_call(patch, "augment", lambda _, results: (results[0] * torch.nan, *results[1:]))
        with pytest.raises(DataError, match="step 3") as caught:
            train(tmp_path, **straight.arguments)
    path = tmp_path / "state" / BAD_BATCH_FILE
    assert caught.value.where == str(path)
    names = json.loads(path.read_text())["images"]
    assert len(names) == 6
    assert set(names) <= {record.path for record in straight.dataset.split("train")}
    # The state before it is finite.
    train(tmp_path, **straight.arguments)
    assert_equal_weights(straight.folder, tmp_path)


def test_resume__gradient_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path, straight: Straight) -> None:
    def poison(arguments: Any, results: Any) -> Any:
        next(arguments[0].parameters()).grad.fill_(torch.inf)
        return results

    with pytest.MonkeyPatch.context() as patch:
        poison_third_call(patch, "backward", poison)
        with pytest.raises(DataError, match=r"gradient.* step 3"):
            train(tmp_path, **straight.arguments)
    train(tmp_path, **straight.arguments)
    assert_equal_weights(straight.folder, tmp_path)


def test_resume__other_ranks_leave_a_bad_loss_to_rank_0(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, read = LossMeter.add, LossMeter.read

    def poisoned(self: Any, result: Any) -> None:
        add(self, result)
        result.losses.fill_(torch.nan)

    def read_as_rank_1(self: Any) -> Any:
        object.__setattr__(self._context, "ranks", RankInfo(1, 2))
        assert len(read(self)) == 1
        raise InterruptedError("read")

    monkeypatch.setattr(LossMeter, "add", poisoned)
    monkeypatch.setattr(LossMeter, "read", read_as_rank_1)
    with pytest.raises(InterruptedError, match="read"):
        train(tmp_path, **straight.arguments)
    assert not (tmp_path / "state" / BAD_BATCH_FILE).exists()


def test_resume__out_of_memory_ends_with_advice_and_keeps_the_state(tmp_path: Path, straight: Straight) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, out_of_memory)
        with pytest.raises(DeviceError) as caught:
            train(tmp_path, **straight.arguments)
    assert "train.accumulate=2" in (caught.value.hint or "")
    train(tmp_path, **straight.arguments)
    assert_equal_weights(straight.folder, tmp_path)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Prefetcher, "_gather"),
        (Prefetcher, "batches"),
        (TrainStep, "prepare"),
        (Trainer, "report_losses"),
        (Trainer, "_end_epoch"),
        (run_module, "prepare"),
        (evaluator_module, "embed"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_resume__out_of_memory_anywhere_is_answered_once(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    monkeypatch.setattr(owner, name, out_of_memory)
    with pytest.raises(DeviceError, match="not enough memory") as caught:
        train(tmp_path, **straight.changed(config=small_training(eval_every=1, image_budget_gb=1e-6)))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_resume__failed_calibration_repeats_no_step(
    tmp_path: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = straight.changed(tests=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "calibrate", out_of_memory)
        with pytest.raises(DeviceError):
            train(tmp_path, **arguments)
    monkeypatch.setattr(Trainer, "advance", out_of_memory)
    train(tmp_path, **arguments)
    assert_equal_weights(straight.folder, tmp_path)

"""Training on a GPU: the same augmentation as on a CPU, steps that never wait for it, and runs that end the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.errors import DeviceError
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT
from pipeline.runtime.seeds import set_deterministic
from pipeline.training import run as run_module
from pipeline.training import setup as preparation
from pipeline.training import step as step_module
from pipeline.training.augment import AugmentParams
from pipeline.training.context import TeacherData, TrainContext
from pipeline.training.cuda_graph import GraphedStep
from pipeline.training.extra import extra_batches, occluded_copies
from pipeline.training.image_store import ImageStore
from pipeline.training.prefetch import Prefetcher
from pipeline.training.run import train
from pipeline.training.trainer import Trainer
from tests.helpers.augmentation import augmented, batch_of, params_of
from tests.helpers.training import HEIGHT, WIDTH, make_masks, make_people, small_model, small_training
from tests.helpers.training_runs import assert_equal_weights, at_step, interrupt, metrics, train_until

pytestmark = pytest.mark.gpu

Graphs = list[GraphedStep[Any, Any]]

STRONG = {"necks": True, "global_dim": 8, "strip_pooling": "body"}
PRESETS = {
    "strong": (STRONG, {"mask_weight": 5, "balance": 0.5, "triplet_on": "parts"}),
    "paper": ({}, {}),
    "baseline": ({"kind": "baseline"}, {}),
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""
    monkeypatch.setattr(run_module, "draw_curves", lambda metrics, out: None)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("gpu")
    dataset = make_people(root / "people")
    return {
        "dataset": dataset,
        "masks": make_masks(root / "masks.h5", dataset),
        "model": small_model(**STRONG),
        "loss": LossConfig(triplet_on="parts"),
    }


def on_gpu(**changes: object) -> TrainConfig:
    return small_training(device="cuda", **changes)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder, "step")]


@pytest.mark.parametrize("seed", range(5))
def test_augment__equals_the_cpu(seed: int) -> None:
    images, parts, body = (torch.from_numpy(each) for each in batch_of(seed, 16))
    params = params_of(seed, 16, padded=0.5)
    there = AugmentParams.unpacked(params.packed().cuda(), params.used)
    wanted = augmented(images, parts, body, params)
    got = augmented(images.cuda(), parts.cuda(), body.cuda(), there)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for one, two in zip(wanted, got, strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=0, atol=5e-5)


def make_trainer(
    folder: Path, model: ModelConfig, loss: LossConfig, config: TrainConfig, *, mapped: bool
) -> tuple[Trainer, Prefetcher]:
    """A trainer on noise, with images on the device or fetched for each batch."""
    stream, count, device = np.random.default_rng(0), 24, torch.device("cuda")
    images = stream.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    if mapped:
        images.tofile(folder / "images")
        images = np.memmap(folder / "images", np.uint8, mode="r", shape=images.shape)
    masks = MaskTargets(
        parts=torch.from_numpy(stream.integers(0, 256, (count, 4, HEIGHT // 16, WIDTH // 16), dtype=np.uint8)),
        body=torch.from_numpy(stream.integers(0, 256, (count, 1, HEIGHT // 4, WIDTH // 4), dtype=np.uint8)),
        has_mask=torch.arange(count) % 5 > 0,
        supervised_parts=torch.ones(4, dtype=torch.bool),
    )
    set_deterministic(config.deterministic)
    torch.manual_seed(0)
    network = build_model(model, count // 4).to(device).to(memory_format=torch.channels_last)
    store = ImageStore(images, tuple(str(i) for i in range(count)))
    prefetcher = Prefetcher(store, device)
    context = TrainContext(
        meta=CheckpointMeta(model, count // 4, ()),
        loss=loss,
        config=config,
        store=store,
        labels=(torch.arange(count) // 4).to(device),
        masks=masks.to(device),
        images=prefetcher,
        device=device,
        ranks=RankInfo(),
        folder=folder,
        progress=SILENT,
    )
    context = dataclasses.replace(context, extra=occluded_copies(context))
    return Trainer(network, context), prefetcher


@pytest.fixture
def forbid_waiting() -> Iterator[None]:
    """Let any operation that makes the host wait for the GPU fail."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("forbid_waiting")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_step__never_waits_for_the_gpu(tmp_path: Path, preset: str, amp: str, mapped: bool, graph: bool) -> None:
    model, loss = PRESETS[preset]
    config = on_gpu(amp=amp, epochs=10, cuda_graph=graph, occluded_copies=0.4)
    trainer, images = make_trainer(
        tmp_path, small_model(**model), LossConfig.model_validate(loss), config, mapped=mapped
    )
    assert (images._resident is None) is mapped
    trainer.stepper.prepare()
    batches = images.batches(trainer.plans(), lambda plan: plan.rows)
    for (plan, batch), extra in zip(batches, extra_batches(trainer._context, 0, 8), strict=False):
        # The first steps choose kernels, allocate memory and are captured, which may wait.
        torch.cuda.set_sync_debug_mode("error" if plan.step >= 5 else "default")
        trainer.advance(plan, batch, extra)
    torch.cuda.set_sync_debug_mode("default")
    assert len(trainer.losses.read()) == 8
    assert (trainer.stepper.graph is not None) is graph
    assert trainer.stepper.graph is None or trainer.stepper.graph.captured


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """What the loops of a test recorded, or were to record."""
    made: Graphs = []

    def watched(*given: Any) -> GraphedStep[Any, Any]:
        made.append(GraphedStep(*given))
        return made[-1]

    monkeypatch.setattr(step_module, "GraphedStep", watched)
    return made


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 3}, {"clip_norm": 0, "ema": 0}, {"mask_teacher": 0.4}, {"occluded_copies": 0.4}],
    ids=str,
)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_graph__bit_equal_to_eager_steps(
    tmp_path: Path,
    arguments: dict[str, Any],
    recordings: Graphs,
    amp: str,
    changes: dict[str, Any],
) -> None:
    dataset = arguments["dataset"]
    teacher = TeacherData(dataset, lambda path: make_masks(path, dataset)) if changes.get("mask_teacher") else None
    for graph in (False, True):
        config = on_gpu(amp=amp, epochs=5, cuda_graph=graph, **changes)
        train(tmp_path / str(graph), **arguments, config=config, teacher=teacher)
    assert [each.captured for each in recordings] == [True]
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert_equal_weights(tmp_path / "False", tmp_path / "True")


def test_graph__random_numbers_of_the_network_are_the_same(
    tmp_path: Path,
    arguments: dict[str, Any],
    recordings: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = preparation.build_model

    def forgetful(*given: Any, **options: Any) -> nn.Module:
        network = build(*given, **options)
        network.backbone.last.register_forward_hook(lambda module, _, out: F.dropout(out, 0.5, module.training))
        return network

    monkeypatch.setattr(preparation, "build_model", forgetful)
    for graph in (False, True):
        train(tmp_path / str(graph), **arguments, config=on_gpu(epochs=5, cuda_graph=graph))
    train_until(tmp_path / "resumed", 4, interrupt, arguments | {"config": on_gpu(epochs=5)})
    train(tmp_path / "resumed", **arguments, config=on_gpu(epochs=5))
    assert [each.captured for each in recordings] == [True, True, True]
    assert len(set(losses(tmp_path / "True"))) == 10
    assert losses(tmp_path / "True") == losses(tmp_path / "False") == losses(tmp_path / "resumed")
    assert_equal_weights(tmp_path / "False", tmp_path / "True")
    assert_equal_weights(tmp_path / "False", tmp_path / "resumed")


_WAITING = """
import torch
from pipeline.errors import DeviceError
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.training.cuda_graph import GraphedStep

def work(given):
    given.sum().item()
    return given * 2

device = torch.device("cuda", 0)
graphed = GraphedStep(work, device)
try:
    for _ in range(4):
        graphed(torch.ones(3, device=device))
except DeviceError as error:
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    print(error)
"""


def test_graph__work_that_waits_is_refused_with_its_cause() -> None:
    # In a process of its own: torch may take the failed recording for under way as long as it lives.
    done = subprocess.run([sys.executable, "-c", _WAITING], capture_output=True, text=True, check=True)
    assert "cannot be captured as a CUDA graph: " in done.stdout
    assert "not permitted" in done.stdout
    assert "train.cuda_graph=false" in done.stdout


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_resume__bit_equal(
    tmp_path: Path,
    arguments: dict[str, Any],
    recordings: Graphs,
    logged: pytest.LogCaptureFixture,
    amp: str,
) -> None:
    dataset = arguments["dataset"]
    config = on_gpu(amp=amp, epochs=6, eval_every=2, checkpoint_minutes=0)
    report = train(tmp_path / "straight", **arguments, config=config, tests=[dataset])
    assert report.peak_memory_gb is not None
    assert report.peak_memory_gb > 0
    assert report.best is not None
    arguments = arguments | {"config": config, "tests": [dataset]}
    train_until(tmp_path / "resumed", 4, interrupt, arguments)
    train(tmp_path / "resumed", **arguments)
    assert "step 5 of 12" in logged.text
    assert [each.captured for each in recordings] == [True, True, True]
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    assert_equal_weights(tmp_path / "straight", tmp_path / "resumed")


def test_prefetch__images_that_do_not_fit_give_the_same_bits(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "resident", **arguments, config=on_gpu())
    train(tmp_path / "mapped", **arguments, config=on_gpu(image_budget_gb=1e-6))
    monkeypatch.setattr("pipeline.training.prefetch._SHARE_OF_DEVICE", 0.0)
    train(tmp_path / "fetched", **arguments, config=on_gpu())
    assert_equal_weights(tmp_path / "resident", tmp_path / "mapped")
    assert_equal_weights(tmp_path / "resident", tmp_path / "fetched")


def test_train__losses_are_those_of_the_cpu(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "cpu", **arguments, config=small_training(epochs=1))
    train(tmp_path / "gpu", **arguments, config=on_gpu(epochs=1))
    one, two = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    assert two[0] == pytest.approx(one[0], rel=1e-2)  # convolutions there have TF32's ten bits
    assert two == pytest.approx(one, rel=5e-2)  # Rounding grows with every step.


def test_train__pieces_have_finite_losses(tmp_path: Path, arguments: dict[str, Any]) -> None:
    train(tmp_path / "pieces", **arguments, config=on_gpu(epochs=1, accumulate=3, amp="bf16"))
    assert len(losses(tmp_path / "pieces")) == 2
    assert np.isfinite(losses(tmp_path / "pieces")).all()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_compile__losses_are_close_to_eager_ones(
    tmp_path: Path,
    arguments: dict[str, Any],
    recordings: Graphs,
    logged: pytest.LogCaptureFixture,
    accumulate: int,
) -> None:
    model = arguments | {"model": small_model(backbone="resnet18", **STRONG)}
    for name in ("plain", "compiled"):
        config = on_gpu(compile=name == "compiled", amp="bf16", accumulate=accumulate, epochs=3)
        train(tmp_path / name, **model, config=config)
    assert "torch.compile failed" not in logged.text
    assert [each.captured for each in recordings] == [True, True]
    one, two = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert two[0] == pytest.approx(one[0], rel=2e-2)
    assert two == pytest.approx(one, rel=0.2)


def test_memory__too_little_ends_with_advice(tmp_path: Path, arguments: dict[str, Any]) -> None:
    big = {"model": small_model(height=512, width=256), "config": on_gpu(identities=6)}
    with pytest.MonkeyPatch.context() as patch, restored_memory():
        # A step needs more; how much was taken before it depends on the tests before this one.
        at_step(patch, 0, lambda: leave(30e6))
        with pytest.raises(DeviceError, match="not enough GPU memory") as caught:
            train(tmp_path, **arguments | big)
    assert "train.accumulate=2" in (caught.value.hint or "")


def test_memory__full_gpu_is_reported(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with restored_memory():
        leave(0)
        with pytest.raises(DeviceError, match="not enough GPU memory"):
            # 28 MB of images: more than fits into what torch has left over of its blocks.
            train(tmp_path, **arguments | {"model": small_model(height=1024, width=512), "config": on_gpu()})


def leave(left: float) -> None:
    """Let this process take no more of the GPU's memory than it has and so many bytes."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + left) / total)


@contextmanager
def restored_memory() -> Iterator[None]:
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()

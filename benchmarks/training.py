"""How close the training loop comes to the fastest loop that could be written for the same network.

The bare loop has no data: one batch that lies on the device, normalised, in channels-last memory; forward, loss,
backward, optimiser; with the same precision, the same fused optimiser and the same allocator settings, on a GPU as a
CUDA graph. What the real loop adds is everything else: choosing the batch, fetching, augmenting and normalising it,
masks, clipping and averaging where the preset asks for them, logs. Both run in this process, in turns, so that a
machine whose speed changes changes both. Images that do not lie on the device are fetched ahead, at most two batches of
them during the bare loop's turn.

    python -m benchmarks.training --backbone mobilenet_v2 --device cpu
    python -m benchmarks.training --backbone resnet50 --device cuda --amp bf16 --compile --batch 64 256 \
      --images 15618 --identities 702 --epochs 3

`--epochs` also runs whole epochs, with their logs and ends, from which the time of 120 is estimated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import logging
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, RunConfig, TrainConfig
from pipeline.config_file import load_config
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.model.losses import total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.model.normalise import normalise
from pipeline.model.weights import load_backbone_weights
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import autocast, device_label, resolve_device
from pipeline.runtime.files import write_json
from pipeline.runtime.process_group import RankInfo
from pipeline.runtime.progress import SILENT
from pipeline.runtime.seeds import set_deterministic
from pipeline.training.compilation import Compiled, compile_network
from pipeline.training.context import TrainContext
from pipeline.training.cuda_graph import GraphedStep
from pipeline.training.gradient import LossFunction
from pipeline.training.image_store import ImageStore
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.optim import build_optimizer
from pipeline.training.prefetch import Prefetcher
from pipeline.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
PUBLISHED_EPOCHS = 120


class Strict(logging.Handler):
    """Ends the benchmark at a warning: a loop that continues without its compiler must not be compared."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise an error for a warning."""
        if record.levelno >= logging.WARNING:
            raise SystemExit(record.getMessage())


def stand_in_store(count: int, height: int, width: int) -> tuple[ImageStore, MaskTargets]:
    """Noise for images: neither the loop nor the network is faster or slower on it."""
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    masks = MaskTargets(
        parts=torch.randint(0, 256, (count, 4, height // 16, width // 16), dtype=torch.uint8),
        body=torch.randint(0, 256, (count, 1, height // 4, width // 4), dtype=torch.uint8),
        has_mask=torch.ones(count, dtype=torch.bool),
        supervised_parts=torch.ones(4, dtype=torch.bool),
    )
    return ImageStore(images, tuple(str(i) for i in range(count))), masks


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Nothing:
    """What the bare loop is given at each step."""


@dataclass(frozen=True)
class Total:
    """What it makes, besides gradients."""

    loss: Tensor


class Bare:
    """The fastest form: a resident batch, nothing but the network and its optimiser."""

    def __init__(self, run: RunConfig, identities: int, device: torch.device) -> None:
        self.run = run
        self.model = network(run.model, identities, device).train()
        count = run.train.identities * run.train.instances
        store, masks = stand_in_store(count, run.model.height, run.model.width)
        self.images = normalise(torch.from_numpy(store.images).to(device))
        self.labels = torch.arange(run.train.identities, device=device).repeat_interleave(run.train.instances)
        there = masks.to(device)
        self.masks = replace(there, parts=there.parts.float() / 255, body=there.body.float() / 255)
        self.optimizer = build_optimizer(self.model, run.train)
        self.precision = functools.partial(autocast, device, run.train.amp)
        self.forward: nn.Module = self.model
        self.total_loss: LossFunction = total_loss
        if run.train.compile:
            self.forward = compile_network(self.model, self.images, self.precision)
            self.total_loss = Compiled(total_loss, "the losses")
        self.work: Callable[[Nothing], Total] = self.gradient
        if device.type == "cuda" and run.train.cuda_graph:
            self.work = GraphedStep(self.gradient, device)

    def gradient(self, _: Nothing) -> Total:
        """Losses and gradients of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            output = self.forward(self.images)
        parts = self.total_loss(output, self.labels, self.masks, self.run.loss)
        parts.total.backward()
        return Total(parts.total.detach())

    def steps(self, count: int) -> None:
        """Train on the same batch so many times."""
        for _ in range(count):
            self.work(Nothing())
            self.optimizer.step()


class Real:
    """The product's loop over a store, without its end of an epoch."""

    def __init__(self, run: RunConfig, images: int, identities: int, device: torch.device) -> None:
        store, masks = stand_in_store(images, run.model.height, run.model.width)
        self.folder = tempfile.TemporaryDirectory()
        self.context = TrainContext(
            meta=CheckpointMeta(run.model, identities, ()),
            loss=run.loss,
            config=run.train,
            store=store,
            labels=(torch.arange(images) % identities).to(device),
            masks=masks.to(device),
            images=Prefetcher(store, device),
            device=device,
            ranks=RankInfo(),
            folder=Path(self.folder.name),
            progress=SILENT,
        )
        self.trainer = self.new_trainer(run.train)
        self.trainer.stepper.prepare()
        self.batches = self.context.images.batches(self.trainer.plans(), lambda plan: plan.rows)

    def new_trainer(self, config: TrainConfig) -> Trainer:
        """Return a trainer on the store, with a network of its own."""
        context = dataclasses.replace(self.context, config=config)
        return Trainer(network(context.model, context.meta.num_classes, context.device), context)

    def steps(self, count: int) -> None:
        """Take the next steps of the run."""
        for plan, images in itertools.islice(self.batches, count):
            self.trainer.advance(plan, images)
            if self.trainer.losses.due():
                self.trainer.report_losses()


def network(model: ModelConfig, identities: int, device: torch.device) -> nn.Module:
    made = build_model(model, identities, backbone_weights=load_backbone_weights(model.weights, model.backbone))
    return made.to(device).to(memory_format=torch.channels_last)


class EpochClock(MetricsLog):
    """A log that also notes when epochs end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ends = [time.perf_counter()]

    def write(self, kind: str, *, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """Write, and look at the clock."""
        super().write(kind, step=step, epoch=epoch, values=values)
        if kind == "epoch":
            self.ends.append(time.perf_counter())


def epoch_seconds(real: Real, epochs: int) -> list[float]:
    """Time of each of so many epochs, all of it; a first one, in which things are compiled and chosen, is left out."""
    trainer = real.new_trainer(real.context.config.model_copy(update={"epochs": epochs + 1}))
    with EpochClock(Path(real.folder.name) / "metrics.jsonl") as log:
        trainer.run(log)
    return [round(after - before, 3) for before, after in itertools.pairwise(log.ends)][1:]


def host_milliseconds(real: Real, device: torch.device) -> float | None:
    """Time the host needs to hand a step to the GPU: what limits small networks there. None on a CPU."""
    if device.type != "cuda":
        return None
    # So few that the GPU's queue has room for them, and none at which losses are read back.
    count = 5
    wait(device)
    real.trainer.report_losses()
    started = time.perf_counter()
    real.steps(count)
    taken = time.perf_counter() - started
    wait(device)
    return taken / count * 1000


def seconds_of(work: Callable[[int], None], count: int, device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    work(count)
    wait(device)
    return (time.perf_counter() - started) / count


def measure(arguments: argparse.Namespace, batch: int) -> dict[str, Any]:
    run = load_config(preset=arguments.preset)
    if batch % run.train.instances:
        raise SystemExit(f"a batch has {run.train.instances} images of each person; {batch} is no multiple of that")
    device = RankInfo().select_device(arguments.device)
    changed = {
        "model": {"backbone": arguments.backbone, "weights": arguments.weights},
        "train": {
            "identities": batch // run.train.instances,
            "amp": arguments.amp,
            "compile": arguments.compile,
            "cuda_graph": arguments.cuda_graph,
            "device": arguments.device,
            "deterministic": arguments.deterministic,
            "epochs": 100000,
        },
    }
    values = run.model_dump()
    run = RunConfig.model_validate(values | {section: values[section] | changed[section] for section in changed})
    set_deterministic(run.train.deterministic)
    torch._dynamo.reset()
    identities = max(arguments.identities, run.train.identities)
    # Kernels are chosen, memory is taken and the step is recorded in the first steps.
    warmup = max(arguments.warmup, 5) if device.type == "cuda" else arguments.warmup
    started = time.perf_counter()
    bare = Bare(run, identities, device)
    bare.steps(warmup)
    wait(device)
    held = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    real = Real(run, arguments.images, identities, device)
    real.steps(warmup)
    wait(device)
    prepared = time.perf_counter() - started
    # The real loop's own, with what it leaves unused.
    peak = torch.cuda.max_memory_reserved() - held if device.type == "cuda" else 0
    pairs = [
        (seconds_of(bare.steps, arguments.steps, device), seconds_of(real.steps, arguments.steps, device))
        for _ in range(arguments.rounds)
    ]
    bare_seconds, real_seconds = (min(times) for times in zip(*pairs, strict=True))
    epochs = epoch_seconds(real, arguments.epochs) if arguments.epochs else []
    result = {
        "batch": batch,
        "bare_images_per_second": round(batch / bare_seconds, 2),
        "real_images_per_second": round(batch / real_seconds, 2),
        "efficiency": round(bare_seconds / real_seconds, 4),
        "efficiency_of_rounds": [round(b / r, 4) for b, r in pairs],
        "efficiency_median": round(statistics.median(b / r for b, r in pairs), 4),
        "host_ms_a_step": host_milliseconds(real, device),
        "peak_gb": round(
            peak / 2**30 if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
        ),
        "seconds_until_the_first_measured_step": round(prepared, 1),
    }
    if real.trainer.stepper.graph is not None:
        result["captured"] = real.trainer.stepper.graph.captured
    if epochs:
        result |= {
            "seconds_of_epochs": epochs,
            f"minutes_of_{PUBLISHED_EPOCHS}_epochs": round(statistics.median(epochs) * PUBLISHED_EPOCHS / 60, 2),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--preset", default="strong")
    parser.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graph", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--images", type=int, default=1024, help="images in the store")
    parser.add_argument("--identities", type=int, default=64, help="people in the store")
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs to measure")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, help="steps a round; by default 3 on a CPU and 100 on a GPU")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of bare and real steps in turn")
    parser.add_argument("--out", type=Path, help="JSON file; by default one named after the device and the network")
    arguments = parser.parse_args()
    tune_allocator()
    logging.getLogger("sgsfa").addHandler(Strict())
    device = RankInfo().device(resolve_device(arguments.device))
    # A round ends when the device has done all it was given, and on a GPU the host works ahead by several steps.
    arguments.steps = arguments.steps or (100 if device.type == "cuda" else 3)
    result = {
        "benchmark": "training loop against a bare loop",
        "device": device_label(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backbone": arguments.backbone,
        "preset": arguments.preset,
        "amp": arguments.amp,
        "compile": arguments.compile,
        "deterministic": arguments.deterministic,
        "cuda_graph": arguments.cuda_graph,
        **{name: getattr(arguments, name) for name in ("images", "identities", "steps", "rounds")},
        "measured": [measure(arguments, batch) for batch in arguments.batch],
    }
    words = [device.type, arguments.backbone, arguments.preset, arguments.amp]
    words += ["compile"] * arguments.compile + ["free"] * (not arguments.deterministic)
    words += ["nograph"] * (device.type == "cuda" and not arguments.cuda_graph)
    out = arguments.out or RESULTS / f"training-{'-'.join(words)}.json"
    write_json(out, result)
    print(json.dumps(result, indent=2))
    print(f"written to {out}")


if __name__ == "__main__":
    main()

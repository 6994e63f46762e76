"""How close the training loop comes to the fastest loop that could be written for the same network.

The bare loop has no data: one batch that lies on the device, normalised, in channels-last memory; forward, loss,
backward, optimiser; with the same precision, the same fused optimiser and the same allocator settings. What the real
loop adds is everything else: choosing the batch, fetching, augmenting and normalising it, masks, clipping and
averaging where the preset asks for them, logs. Both run in this process, in turns, so that a machine whose speed
changes changes both.

    python -m benchmarks.training --backbone mobilenet_v2 --device cpu
    python -m benchmarks.training --backbone resnet50 --device cuda --amp bf16 --compile --batch 64 256
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import LossConfig, ModelConfig, TrainConfig, load_config
from pipeline.model.losses import total_loss
from pipeline.model.network import build_model
from pipeline.model.normalise import normalise
from pipeline.model.weights import load_backbone_weights
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import autocast, device_label, resolve_device
from pipeline.runtime.distributed import World
from pipeline.runtime.files import write_json
from pipeline.runtime.progress import SILENT
from pipeline.runtime.seeds import set_deterministic
from pipeline.training.feeder import Feeder
from pipeline.training.loop import Loop, Setting, compiled
from pipeline.training.optim import build_optimizer
from pipeline.training.plan import plan_steps
from pipeline.training.store import ImageStore, Targets

RESULTS = Path(__file__).parent / "results"
IDENTITIES = 64


def stand_in_store(count: int, height: int, width: int) -> tuple[ImageStore, Targets]:
    """Noise for images: neither the loop nor the network is faster or slower on it."""
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    targets = Targets(
        labels=torch.arange(count) % IDENTITIES,
        parts=torch.randint(0, 256, (count, 4, height // 16, width // 16), dtype=torch.uint8),
        whole=torch.randint(0, 256, (count, 1, height // 4, width // 4), dtype=torch.uint8),
        has_mask=torch.ones(count, dtype=torch.bool),
        num_classes=IDENTITIES,
    )
    return ImageStore(images, tuple(str(i) for i in range(count))), targets


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Bare:
    """The fastest form: a resident batch, nothing but the network and its optimiser."""

    def __init__(self, model_config: ModelConfig, loss: LossConfig, config: TrainConfig, device: torch.device) -> None:
        self.device, self.loss, self.config = device, loss, config
        model = build_model(
            model_config,
            IDENTITIES,
            backbone_weights=load_backbone_weights(model_config.weights, model_config.backbone),
        )
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        count = config.identities * config.instances
        store, targets = stand_in_store(count, model_config.height, model_config.width)
        self.images = normalise(torch.from_numpy(store.images).to(device))
        self.labels = torch.arange(config.identities, device=device).repeat_interleave(config.instances)
        self.parts = targets.parts.to(device).float() / 255
        self.whole = targets.whole.to(device).float() / 255
        self.has_mask = targets.has_mask.to(device)
        self.optimizer = build_optimizer(self.model, config)
        self.forward = compiled(self.model, lambda: self.images, SILENT) if config.compile else self.model

    def steps(self, count: int) -> None:
        """Train on the same batch so many times."""
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, self.config.amp):
                output = self.forward(self.images)
            parts = total_loss(output, self.labels, self.whole, self.parts, self.has_mask, self.loss)
            parts.total.backward()
            self.optimizer.step()


class Real:
    """The product's loop over a store, without its end of an epoch."""

    def __init__(
        self, model_config: ModelConfig, loss: LossConfig, config: TrainConfig, device: torch.device, images: int
    ) -> None:
        model = build_model(
            model_config,
            IDENTITIES,
            backbone_weights=load_backbone_weights(model_config.weights, model_config.backbone),
        )
        model = model.to(device).to(memory_format=torch.channels_last)
        store, targets = stand_in_store(images, model_config.height, model_config.width)
        self.size = (model_config.height, model_config.width)
        self.labels = targets.labels.tolist()
        self.folder = tempfile.TemporaryDirectory()
        setting = Setting(
            names=store.names,
            feeder=Feeder(store, device),
            targets=targets.to(device),
            size=self.size,
            device=device,
            place=World(),
            folder=Path(self.folder.name),
            identity={},
        )
        self.setting, self.config = setting, config
        self.loop = Loop(model, setting, model_config, loss, config, SILENT)
        self.forward = self.loop.forward_model()
        self.done = 0

    def steps(self, count: int) -> None:
        """Take the next steps of the run."""
        plans = plan_steps(
            self.labels, self.config, self.size, start=self.done, stop=self.done + count, place=self.setting.place
        )
        for plan, images in self.setting.feeder.batches(plans, lambda plan: plan.rows):
            self.loop.advance(self.forward, plan, images)
            if self.loop.time_to_look():
                self.loop.look(None)
        self.done += count


def host_milliseconds(real: Real, device: torch.device, count: int) -> float | None:
    """Time the host needs to hand a step to the GPU: what limits small networks there. None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
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
    device = resolve_device(arguments.device)
    changes = {"backbone": arguments.backbone, "weights": arguments.weights}
    model = ModelConfig.model_validate(run.model.model_dump() | changes)
    config = TrainConfig.model_validate(
        run.train.model_dump()
        | {
            "identities": batch // run.train.instances,
            "amp": arguments.amp,
            "compile": arguments.compile,
            "device": arguments.device,
            "deterministic": arguments.deterministic,
            "epochs": 100000,
        }
    )
    set_deterministic(config.deterministic)
    bare, real = Bare(model, run.loss, config, device), Real(model, run.loss, config, device, arguments.images)
    # Kernels are chosen and memory is taken in the first steps.
    bare.steps(arguments.warmup)
    real.steps(arguments.warmup)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pairs = [
        (seconds_of(bare.steps, arguments.steps, device), seconds_of(real.steps, arguments.steps, device))
        for _ in range(arguments.rounds)
    ]
    bare_seconds, real_seconds = (min(times) for times in zip(*pairs, strict=True))
    return {
        "batch": batch,
        "bare_images_per_second": round(batch / bare_seconds, 2),
        "real_images_per_second": round(batch / real_seconds, 2),
        "efficiency": round(bare_seconds / real_seconds, 4),
        "efficiency_of_rounds": [round(b / r, 4) for b, r in pairs],
        "efficiency_median": round(statistics.median(b / r for b, r in pairs), 4),
        "host_ms_a_step": host_milliseconds(real, device, arguments.steps),
        "peak_gb": round(
            torch.cuda.max_memory_allocated() / 2**30
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            3,
        ),
        "epoch_of_15618_images_seconds": round(15618 / batch * real_seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--preset", default="strong")
    parser.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--images", type=int, default=1024, help="images in the store")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of bare and real steps in turn")
    parser.add_argument("--out", type=Path, help="JSON file; by default one named after the device and the network")
    arguments = parser.parse_args()
    tune_allocator()
    device = resolve_device(arguments.device)
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
        "measured": [measure(arguments, batch) for batch in arguments.batch],
    }
    name = f"training-{device.type}-{arguments.backbone}-{arguments.amp}{'-compile' if arguments.compile else ''}.json"
    out = arguments.out or RESULTS / name
    write_json(out, result)
    print(json.dumps(result, indent=2))
    print(f"written to {out}")


if __name__ == "__main__":
    main()

"""Train the built-in parser.

`python -m tools.parser.train --shared SHARED --config tools/parser/config.toml [--out FOLDER] [--start WEIGHTS]`

Writes FOLDER/builtin.safetensors (half precision, averaged weights) at the end of each stage and keeps
FOLDER/state.pt, from which the same command goes on after an interruption. Copy the weights to
pipeline/parsing/weights and measure them with tools.parser.evaluate.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.config import SynthConfig
from pipeline.parsing.builtin import BuiltinNet, BuiltinParser, has_native_bfloat16
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.files import sha256_file
from tools.parser.clothing import BAG, IN_FRONT, Photograph, read_photographs
from tools.parser.crops import Crop, CropRules
from tools.parser.data import LABELS, Crops
from tools.parser.evaluate import measure, measure_occluded
from tools.parser.losses import parser_loss
from tools.parser.rendered import make_rendered, read_rendered

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
_WARM_UP = 60
_FOLLOW_EVERY = 5
_STATE_EVERY = 100
_MEASURE_EVERY = 400


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the schedule.

    Attributes:
        name: Of its weights file.
        steps: Batches.
        rate: Learning rate at its beginning.
        final: The rate at its end as a share of that, reached along half a cosine; 1 keeps it constant.
        rendered_share: Share of rendered people among the crops.
        rules: How its crops differ from the rules of all stages.
        background: Weight of the background in the cross-entropy.
        hidden: What is added to the weight of a cell whose person is hidden by something in front.
    """

    name: str
    steps: int
    rate: float
    final: float
    rendered_share: float
    background: float
    hidden: float
    rules: dict[str, float] = field(default_factory=dict)


def starting_network(encoder: Path) -> BuiltinNet:
    """The network with ImageNet weights (torchvision's key names) in its encoder."""
    network = BuiltinNet()
    state = {name.removeprefix("features."): value for name, value in load_file(encoder).items()}
    known = network.encoder.state_dict()
    network.encoder.load_state_dict({name: value for name, value in state.items() if name in known}, strict=False)
    lacking = [name for name in known if name not in state and not name.endswith("num_batches_tracked")]
    if lacking:
        raise ValueError(f"{encoder} lacks {len(lacking)} tensors of MobileNetV2, such as {lacking[0]}")
    return network


def load_start(network: BuiltinNet, path: Path) -> None:
    """Fill the network with weights that `save_weights` wrote.

    Raises:
        ValueError: They are another network's.
    """
    stored = {name: value.float() for name, value in load_file(path).items()}
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    different = sorted(own.keys() ^ stored.keys()) or sorted(n for n in own if own[n].shape != stored[n].shape)
    if different:
        raise ValueError(f"{path} is of another network: {different[0]} differs")
    network.load_state_dict(stored, strict=False)


def class_weights(background: float, device: torch.device) -> Tensor:
    """Small parts count somewhat more in the cross-entropy; much more, and their outlines would grow."""
    weights = torch.ones(LABELS, device=device)
    weights[0] = background
    weights[[1, 2, 4, 13]] = 1.2
    weights[[8, 18, 19]] = 1.5
    weights[[3, 14, 15, 11]] = 1.2
    weights[[BAG, IN_FRONT]] = background
    return weights


def learning_rate(step: int, stage: Stage, *, warm_up: int) -> float:
    """Rate at a step of a stage: linear over the first `warm_up` steps, then along half a cosine to the final one."""
    share = step / max(1, stage.steps)
    rate = stage.rate * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * share)))
    return rate * min(1.0, (step + 1) / max(1, warm_up))


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the weights in half precision, without the counters that only training needs."""
    state = {
        name: value.detach().cpu().half().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, path)


def tilted(network: BuiltinNet, tilt: float) -> BuiltinNet:
    """A copy that calls a cell "in front" less readily: `tilt` is taken off that label's logit."""
    copied = copy.deepcopy(network)
    assert copied.classify.bias is not None
    with torch.no_grad():
        copied.classify.bias[IN_FRONT] -= tilt
    return copied


def blended(network: BuiltinNet, path: Path, share: float) -> BuiltinNet:
    """A copy with weights between its own and those of a file, of which it takes a share.

    Of one training's networks, the mean does better than either of two that err in different ways (Wortsman et al.,
    "Model soups", 2022).
    """
    other = copy.deepcopy(network)
    load_start(other, path)
    with torch.no_grad():
        for mixed, own in zip(other.state_dict().values(), network.state_dict().values(), strict=True):
            if mixed.is_floating_point():
                mixed.mul_(share).add_(own, alpha=1 - share)
    return other


class Trainer:
    """The state of a run: network, its average, optimiser and the step it has reached."""

    def __init__(
        self, config: dict[str, Any], shared: Path, out: Path, rendered: Path | None, start: Path | None = None
    ) -> None:
        self.seed: int = config["seed"]
        self.batch: int = config["batch"]
        self.jaccard: float = config["jaccard"]
        self.decay: float = config["ema"]
        self.frozen: int = config["frozen"]
        self.tilt: float = config["tilt"]
        self.blend: dict[str, Any] | None = config.get("blend")
        self.stages = [Stage(**stage) for stage in config["stage"]]
        if self.blend is not None and self.blend["stage"] not in {stage.name for stage in self.stages}:
            raise ValueError(f"there is no stage {self.blend['stage']!r} to blend with")
        self.rules = CropRules(**config["rules"])
        self.out = out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = has_native_bfloat16(self.device)
        photographs = shared / "data" / "clothing_parsing"
        self.photographs: list[Photograph] = read_photographs(photographs, "train")
        self.tuning: list[Photograph] = read_photographs(photographs, "tuning")
        self.rendered = rendered
        self.rendered_settings = SynthConfig(**config["rendered"])
        torch.manual_seed(self.seed)
        network = starting_network(shared / "weights" / "mobilenet_v2_imagenet.safetensors")
        self.start = ""
        if start is not None:
            load_start(network, start)
            self.start = sha256_file(start)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.network.encoder[: self.frozen].requires_grad_(False)
        self.average = copy.deepcopy(self.network).eval()
        self.done = 0
        self.optimiser = self._new_optimiser()
        self.state = out / "state.pt"
        if self.state.exists():
            self._resume()

    def run(self, until: str | None = None) -> None:
        """Train the stages that are not done yet, up to and including the stage named `until`."""
        first = 0
        for number, stage in enumerate(self.stages):
            last = first + stage.steps
            if self.done < last:
                self._run_stage(stage, first, warm_up=_WARM_UP if number == 0 else 0)
                save_weights(self.out / f"{stage.name}.safetensors", self.average)
                save_weights(self.out / "builtin.safetensors", tilted(self._blended(stage), self.tilt))
            first = last
            if stage.name == until:
                return

    def _blended(self, stage: Stage) -> BuiltinNet:
        """The averaged network after a stage, mixed with that of an earlier one where the configuration asks for it."""
        names = [each.name for each in self.stages]
        if self.blend is None or names.index(stage.name) <= names.index(self.blend["stage"]):
            return self.average
        return blended(self.average, self.out / f"{self.blend['stage']}.safetensors", self.blend["share"])

    def _run_stage(self, stage: Stage, first: int, *, warm_up: int) -> None:
        rendered: list[Crop] = []
        if stage.rendered_share > 0:
            if self.rendered is None:
                make_rendered(self.out / "rendered", self.rendered_settings)
            rendered = read_rendered(self.rendered or self.out / "rendered")
        crops = Crops(
            self.photographs,
            rendered,
            share=stage.rendered_share,
            rules=replace(self.rules, **stage.rules),
            seed=self.seed,
            first=self.done * self.batch,
            last=(first + stage.steps) * self.batch,
        )
        loader = DataLoader(crops, self.batch, num_workers=1, prefetch_factor=4)
        weights = class_weights(stage.background, self.device)
        mean, std = MEAN.to(self.device) * 255, STD.to(self.device) * 255
        started, recent = time.monotonic(), 0.0
        for count, (images, target, hidden, known) in enumerate(loader, 1):
            rate = learning_rate(self.done - first, stage, warm_up=warm_up)
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["share"]
            pixels = images.to(self.device).permute(0, 3, 1, 2).float()
            self.network.train()
            self.network.encoder[: self.frozen].eval()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits = self.network((pixels - mean) / std)
            cells = 1 + stage.hidden * hidden.to(self.device)
            loss = parser_loss(
                logits.float(),
                target.to(self.device),
                weights,
                jaccard=self.jaccard,
                cells=cells,
                known=known.to(self.device),
            )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimiser.step()
            self.done += 1
            self._follow()
            recent += (loss.item() - recent) / min(count, 50)
            if count % 50 == 0:
                speed = count * self.batch / (time.monotonic() - started)
                print(
                    f"{stage.name} {self.done - first}/{stage.steps} loss {recent:.4f} {speed:.1f} crops/s", flush=True
                )
            if self.done % _STATE_EVERY == 0:
                self._keep()
            if self.done % _MEASURE_EVERY == 0 or self.done == first + stage.steps:
                self._measure(stage)
        self._keep()

    def _follow(self) -> None:
        if self.done % _FOLLOW_EVERY:
            return
        decay = min(self.decay**_FOLLOW_EVERY, (1 + self.done) / (10 * _FOLLOW_EVERY + self.done))
        with torch.no_grad():
            for mine, new in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(new, 1 - decay)
                else:
                    mine.copy_(new)

    def _measure(self, stage: Stage) -> None:
        parser = BuiltinParser(self.average, self.device)
        figures = {
            "stage": stage.name,
            "step": self.done,
            **measure(parser, self.tuning),
            "occluded": measure_occluded(parser, self.tuning),
        }
        with (self.out / "tuning.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        print(json.dumps(figures), flush=True)
        save_weights(self.out / "latest.safetensors", self.average)

    def _new_optimiser(self) -> torch.optim.Optimizer:
        encoder = list(self.network.encoder[self.frozen :].parameters())
        known = {id(parameter) for parameter in self.network.encoder.parameters()}
        decoder = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        groups = [{"params": encoder, "share": 0.5}, {"params": decoder, "share": 1.0}]
        # One kernel for all tensors: a thousand small operations would each wait for the slowest thread.
        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-2, fused=True)

    def _keep(self) -> None:
        partial = self.state.with_suffix(".part")
        state = {
            "done": self.done,
            "start": self.start,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, partial)
        partial.replace(self.state)

    def _resume(self) -> None:
        state = torch.load(self.state, map_location=self.device, weights_only=True)
        if state.get("start", self.start) != self.start:
            raise ValueError(f"{self.state} began from other weights; give the same --start, or another --out")
        self.done = state["done"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--shared", type=Path, required=True, help="folder with data/clothing_parsing and weights")
    parse.add_argument("--config", type=Path, default=Path(__file__).with_name("config.toml"))
    parse.add_argument("--out", type=Path, default=Path("artifacts/parser"))
    parse.add_argument(
        "--rendered", type=Path, help="finished folder of rendered people; default: rendered into OUT/rendered"
    )
    parse.add_argument("--start", type=Path, help="weights to go on from, such as those of the package")
    parse.add_argument("--until", help="stop after this stage")
    parse.add_argument("--steps", type=int, help="steps of the first stage, for a trial")
    arguments = parse.parse_args()
    tune_allocator()
    # A thread pool of OpenCV's would not survive the fork of the loader's worker, which would wait for it for ever.
    cv2.setNumThreads(0)
    config = tomllib.loads(arguments.config.read_text())
    if arguments.steps:
        config["stage"][0]["steps"] = arguments.steps
    arguments.out.mkdir(parents=True, exist_ok=True)
    Trainer(config, arguments.shared, arguments.out, arguments.rendered, arguments.start).run(arguments.until)


if __name__ == "__main__":
    main()

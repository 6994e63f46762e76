"""Train the built-in parser.

`python -m tools.parser.train --shared SHARED --things THINGS [--config FILE.toml] [--out FOLDER] [--start WEIGHTS]`

Writes FOLDER/STAGE.safetensors (half precision, averaged weights) at the end of each stage, FOLDER/builtin.safetensors
at the end of all, and keeps FOLDER/state.pt, from which the same command resumes. Copy the
weights to pipeline/parsing/weights and measure them with tools.parser.evaluate.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import tomllib
from collections.abc import Mapping, Sequence
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
from tools.parser.cutouts import read_cutouts
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
        begins_with: Shares of earlier stages' averaged weights that it begins with; empty: it continues from the
            previous stage.
    """

    name: str
    steps: int
    rate: float
    final: float
    rendered_share: float
    background: float
    hidden: float
    begins_with: dict[str, float] = field(default_factory=dict)
    rules: dict[str, float] = field(default_factory=dict)


def starting_network(encoder: Path) -> BuiltinNet:
    """Return the network with ImageNet weights (torchvision's key names) in its encoder."""
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
    """Return small parts count somewhat more in the cross-entropy; much more, and their outlines would grow."""
    weights = torch.ones(LABELS, device=device)
    weights[0] = background
    weights[[1, 2, 4, 13]] = 1.2
    weights[[8, 18, 19]] = 1.5
    weights[[3, 14, 15, 11]] = 1.2
    weights[[BAG, IN_FRONT]] = background
    return weights


def learning_rate(step: int, stage: Stage, *, warm_up: int) -> float:
    """Return the rate at a step of a stage: linear over `warm_up` steps, then half a cosine to the final one."""
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
    """Return a copy that calls a cell "in front" less readily: `tilt` is taken off that label's logit."""
    copied = copy.deepcopy(network)
    assert copied.classify.bias is not None
    with torch.no_grad():
        copied.classify.bias[IN_FRONT] -= tilt
    return copied


def blended(shares: Mapping[Path, float]) -> BuiltinNet:
    """Return the network with the mean of several files' weights, each with its share.

    Of networks that began with the same weights, the mean does better than each of them, which err in different ways
    (Wortsman et al., "Model soups", 2022).

    Raises:
        ValueError: The shares do not add up to 1, or a file is another network's.
    """
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares {sorted(shares.values())} do not add up to 1")
    other = BuiltinNet()
    mean = {name: torch.zeros_like(value) for name, value in other.state_dict().items()}
    for path, share in shares.items():
        load_start(other, path)
        for name, value in other.state_dict().items():
            if value.is_floating_point():
                mean[name].add_(value, alpha=share)
    other.load_state_dict(mean)
    return other


class Trainer:
    """The state of a run: network, its average, optimiser and the step it has reached."""

    def __init__(
        self,
        config: dict[str, Any],
        shared: Path,
        out: Path,
        rendered: Path | None,
        start: Path | None = None,
        things: Path | None = None,
    ) -> None:
        self.seed: int = config["seed"]
        self.batch: int = config["batch"]
        self.jaccard: float = config["jaccard"]
        self.decay: float = config["ema"]
        self.frozen: int = config["frozen"]
        self.tilt: float = config["tilt"]
        self.stages = [Stage(**stage) for stage in config["stage"]]
        self.blend: dict[str, float] = config.get("blend") or {self.stages[-1].name: 1.0}
        names: list[str] = []
        for stage in self.stages:
            _check_names(stage.begins_with, names)
            names.append(stage.name)
        _check_names(self.blend, names)
        self.rules = CropRules(**config["rules"])
        if things is None and any(replace(self.rules, **stage.rules).pictured > 0 for stage in self.stages):
            raise ValueError("the configuration pastes pictures of things: name their folder by --things")
        self.out = out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = has_native_bfloat16(self.device)
        photographs = shared / "data" / "clothing_parsing"
        self.photographs: list[Photograph] = read_photographs(photographs, "train")
        self.tuning: list[Photograph] = read_photographs(photographs, "tuning")
        self.things = read_cutouts(things) if things is not None else []
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
                if stage.begins_with and self.done == first:
                    self._begin_with(stage.begins_with)
                warm_up = _WARM_UP if number == 0 or stage.begins_with else 0
                self._run_stage(stage, first, warm_up=warm_up)
            first = last
            if stage.name == until:
                return
        save_weights(self.out / "builtin.safetensors", tilted(self._mean(self.blend), self.tilt))

    def _mean(self, shares: Mapping[str, float]) -> BuiltinNet:
        return blended({self.out / f"{name}.safetensors": share for name, share in shares.items()})

    def _begin_with(self, shares: Mapping[str, float]) -> None:
        state = self._mean(shares).state_dict()
        self.network.load_state_dict(state)
        self.average.load_state_dict(state)
        self.optimiser = self._new_optimiser()

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
            things=self.things,
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
            if self.done % _STATE_EVERY == 0 and self.done < first + stage.steps:
                self._keep()
            if self.done % _MEASURE_EVERY == 0 or self.done == first + stage.steps:
                self._measure(stage)
        # Before the state says that the stage is over: later stages may begin with its weights.
        save_weights(self.out / f"{stage.name}.safetensors", self.average)
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


def _check_names(shares: Mapping[str, float], names: Sequence[str]) -> None:
    if unknown := sorted(shares.keys() - set(names)):
        raise ValueError(f"no earlier stage {unknown[0]!r}")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--shared", type=Path, required=True, help="folder with data/clothing_parsing and weights")
    parse.add_argument("--config", type=Path, default=Path(__file__).with_name("config.toml"))
    parse.add_argument("--out", type=Path, default=Path("artifacts/parser"))
    parse.add_argument(
        "--rendered", type=Path, help="finished folder of rendered people; default: rendered into OUT/rendered"
    )
    parse.add_argument("--start", type=Path, help="initial weights, such as those of the package")
    parse.add_argument("--things", type=Path, help="folder of pictures to paste in front; see tools/parser/cutouts.py")
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
    Trainer(config, arguments.shared, arguments.out, arguments.rendered, arguments.start, arguments.things).run(
        arguments.until
    )


if __name__ == "__main__":
    main()

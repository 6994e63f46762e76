"""How close `masks build` comes to the parser's network alone, and how fast it is end to end.

The bare forward is the network and nothing else: one batch of prepared images that lies in memory, again and again.
What the build adds is reading and decoding the images, normalising them, soft-max, grouping, averaging, quality,
checksums and the file. Both run in this process, in turns, so that a machine whose speed changes changes both.

    python -m benchmarks.masks
    python -m benchmarks.masks --images /data/Market-1501/bounding_box_train --parser schp:lip.pth --count 64
    python -m benchmarks.masks --parser schp --count 16 --rounds 1

`schp` without a file takes random weights of the published shapes, which compute as long as the true ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.config import MasksConfig
from pipeline.formats.masks import MaskFile
from pipeline.masks.build import build_masks
from pipeline.parsing.parser import Parser, load_parser
from pipeline.parsing.schp import SchpNet
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import device_label, resolve_device
from pipeline.runtime.files import write_json

RESULTS = Path(__file__).parent / "results"


def write_stand_ins(folder: Path, count: int) -> None:
    """Smooth pictures of 128 x 64 pixels, which decode as fast as photographs of that size."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), cv2.resize(coarse, (64, 128), interpolation=cv2.INTER_CUBIC))


def write_random_schp(path: Path) -> None:
    """An SCHP checkpoint of the lip shapes with random weights, normalised so that activations stay in range."""
    torch.manual_seed(0)
    torch.save({"state_dict": SchpNet(20).state_dict()}, path)


def network_of(parser: Parser) -> torch.nn.Module:
    """The network inside one of our own parsers."""
    return next(value for value in vars(parser).values() if isinstance(value, torch.nn.Module))


@torch.inference_mode()
def run_bare(parser: Parser, batch: int, count: int) -> tuple[float, float]:
    """Seconds an image of the network alone, by the clock and of the processors, in the parser's own precision."""
    network = network_of(parser)
    device = next(network.parameters()).device
    images = torch.randn(batch, 3, *parser.input_size, device=device).to(memory_format=torch.channels_last)
    rounds = max(1, count // batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=parser.info.precision == "bfloat16"):
        begun, busy = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            network(images).sum().item()
        spent = time.perf_counter() - begun, time.process_time() - busy
    return spent[0] / (rounds * batch), spent[1] / (rounds * batch)


def measure(root: Path, names: list[str], spec: str, device: str, rounds: int) -> dict[str, Any]:
    """Build and run bare in turns; the medians, and the median of the turns' ratios."""
    tune_allocator()
    config = MasksConfig(parser=spec, device=device)
    parser = load_parser(spec, device=device)
    built, bare, body, by_processor = [], [], [], []
    batch = 0
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            # The first turn warms caches and allocators up; of a slow parser, one image does.
            chosen = names if turn else names[: 64 if spec == "builtin" else 1]
            out = Path(folder) / f"{turn}.h5"
            marks = [time.process_time()]
            load_parser(spec, device=device)
            marks.append(time.process_time())
            report = build_masks(out, root=root, names=chosen, config=config)
            marks.append(time.process_time())
            batch = int(MaskFile.open(out).provenance.values["batch_size"])
            clock, busy = run_bare(parser, batch, len(chosen))
            if turn:
                built.append(report.images_per_second)
                bare.append(1 / clock)
                body.append(report.total / report.seconds)
                # The build loads a parser too, which its rate does not count either.
                working = marks[2] - marks[1] - (marks[1] - marks[0])
                by_processor.append(busy * len(chosen) / working)
    return {
        "parser": spec.partition(":")[0],
        "precision": parser.info.precision,
        "batch_size": batch,
        "images": len(names),
        "rounds": rounds,
        "built_images_per_second": statistics.median(built),
        "built_with_loading_images_per_second": statistics.median(body),
        "bare_images_per_second": statistics.median(bare),
        "ratio": statistics.median(one / other for one, other in zip(built, bare, strict=True)),
        "ratio_of_processor_time": statistics.median(by_processor),
        "ratios": [round(one / other, 4) for one, other in zip(built, bare, strict=True)],
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "device": device_label(resolve_device(device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; without it, pictures are made")
    parser.add_argument("--parser", default="builtin", help="builtin, schp:FILE, or schp for random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="by default results/masks-PARSER.json beside this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = options.images or Path(made)
        if options.images is None:
            write_stand_ins(root, options.count)
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))[: options.count]
        spec = options.parser
        if spec == "schp":
            write_random_schp(Path(made) / "random.pth")
            spec = f"schp:{Path(made) / 'random.pth'}"
        result = measure(root, names, spec, options.device, options.rounds)
    write_json(options.out or RESULTS / f"masks-{result['parser']}.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

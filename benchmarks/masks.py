"""How close `masks build` comes to the parser alone.

The bare forward has no data: one batch of decoded images that lies in memory, through `Parser.parse` again and again.
What the build adds is reading and decoding the images, grouping, averaging, quality, checksums and the file. Both run
in this process, in turns, so that a machine whose speed changes changes both.

    python -m benchmarks.masks
    python -m benchmarks.masks --images /data/Market-1501/bounding_box_train --parser schp:lip.pth --count 64
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
from pipeline.datasets.maskfile import MaskFile
from pipeline.masks.build import build_masks
from pipeline.parsing.parser import Parser, load_parser
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


def bare_rate(parser: Parser, batch: int, count: int) -> float:
    """Images a second of the parser alone."""
    images = np.random.default_rng(0).integers(0, 256, (batch, *parser.input_size, 3), dtype=np.uint8)
    begun = time.perf_counter()
    rounds = max(1, count // batch)
    for _ in range(rounds):
        parser.parse(images).sum().item()
    return rounds * batch / (time.perf_counter() - begun)


def measure(root: Path, names: list[str], spec: str, device: str, rounds: int) -> dict[str, Any]:
    """Build and run bare in turns; the medians and their ratio."""
    tune_allocator()
    config = MasksConfig(parser=spec, device=device)
    parser = load_parser(spec, device=device)
    built, bare = [], []
    batch = 0
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            out = Path(folder) / f"{turn}.h5"
            report = build_masks(out, root=root, names=names, config=config)
            batch = MaskFile.open(out).meta.batch_size
            rate = bare_rate(parser, batch, len(names))
            # The first turn warms caches and allocators up.
            if turn:
                built.append(report.images_per_second)
                bare.append(rate)
    return {
        "parser": spec,
        "precision": parser.info.precision,
        "batch_size": batch,
        "images": len(names),
        "rounds": rounds,
        "built_images_per_second": statistics.median(built),
        "bare_images_per_second": statistics.median(bare),
        "ratio": statistics.median(one / other for one, other in zip(built, bare, strict=True)),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "device": device_label(resolve_device(device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; without it, pictures are made")
    parser.add_argument("--parser", default="builtin")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "masks.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = options.images or Path(made)
        if options.images is None:
            write_stand_ins(root, options.count)
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))[: options.count]
        result = measure(root, names, options.parser, options.device, options.rounds)
    write_json(options.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

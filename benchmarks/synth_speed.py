"""Speed and memory of rendering, measured on some identities and extrapolated to a preset.

    python -m benchmarks.synth_speed [--preset benchmark] [--people 6]

Renders in this process, on one core (set OMP_NUM_THREADS=1), after one warm-up person that compiles and loads.
The clock is this process's CPU time, so that other programs on the machine do not count; wall time is printed too.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

from pipeline.runtime.parallel import limit_threads
from sgsfa_synth.plan import plan_images
from sgsfa_synth.presets import PRESETS
from sgsfa_synth.scene import SceneSettings, render


def main() -> None:
    arguments = parse()
    limit_threads()
    config = PRESETS[arguments.preset]
    settings = SceneSettings.of(config)
    planned = plan_images(
        config.ids, config.cameras, config.shots, config.occlusion, config.seed, train_share=config.train_share
    )
    # Neighbours differ as all do, so the first identities are a fair sample; the first one warms up.
    people = [[image for image in planned if image.identity == person] for person in range(arguments.people + 1)]
    for image in people[0]:
        render(config.seed, image.identity, image.camera, image.shot, occluded=image.occluded, settings=settings)
    images = [image for person in people[1:] for image in person]
    wall, cpu = time.perf_counter(), time.process_time()
    for image in images:
        render(config.seed, image.identity, image.camera, image.shot, occluded=image.occluded, settings=settings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scale = 1024 if sys.platform == "darwin" else 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale / 1024
    print(
        json.dumps(
            {
                "preset": arguments.preset,
                "size": f"{config.height}x{config.width}, {settings.supersample}x supersampled",
                "images": len(images),
                "occluded": sum(image.occluded for image in images),
                "images per minute and core": round(60 * len(images) / cpu),
                "wall seconds": round(wall, 1),
                "peak memory MiB": round(memory),
                "whole preset": {
                    "images": len(planned),
                    "core minutes, extrapolated": round(len(planned) * cpu / len(images) / 60, 1),
                },
            },
            indent=2,
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="benchmark", choices=PRESETS)
    parser.add_argument("--people", type=int, default=6, help="identities to render")
    return parser.parse_args()


if __name__ == "__main__":
    main()

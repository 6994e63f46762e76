"""Try an installed wheel without extras, network or configuration: python tools/try_wheel.py.

Run it with the interpreter of a clean environment, outside the checkout. It draws a few images, searches them with the
built-in model from Python and from the command line, and prints how long both took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import sgsfa


def draw(folder: Path, count: int) -> list[Path]:
    """Write coloured figures, each identity twice."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number // 2)
        image = np.full((128, 64, 3), 90 + number % 2 * 40, np.uint8)
        for top, bottom in ((10, 30), (30, 70), (70, 120)):
            image[top:bottom, 16:48] = rng.integers(0, 256, 3)
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `sgsfa` as an installed user would."""
    return subprocess.run([sys.executable, "-m", "sgsfa_cli", *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    assert "site-packages" in str(Path(sgsfa.__file__)), "run it outside the checkout"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = draw(folder, 20)
        begun = time.monotonic()
        found = sgsfa.search(paths[4], folder, k=2)
        names = [hit.name for hit in found.queries[0].nearest]
        assert names == ["004.png", "005.png"], names
        print(f"search of {len(paths)} images from Python: {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()
        compared = command("compare", str(paths[0]), str(paths[1]), "--json")
        assert compared.returncode == 0, compared.stderr
        print(f"compare: {time.monotonic() - begun:.1f} s, distance {json.loads(compared.stdout)['distance']:.3f}")
        masks = sgsfa.build_masks(folder / "masks.h5", folder)
        assert masks.done == len(paths)
        # Without the extra, the error names its installation.
        missing = command("data", "synth", str(folder / "people"), "--ids", "4", "--json")
        assert missing.returncode == 2, missing
        assert "sgsfa[synth]" in json.loads(missing.stdout)["error"]["hint"]
    print("the wheel works")


if __name__ == "__main__":
    main()

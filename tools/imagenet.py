"""Convert the ImageNet weights of this package.

`python -m tools.imagenet [WEIGHTS] [--out FOLDER]`

WEIGHTS is torchvision's MobileNetV2 as .pth or .safetensors; without it torchvision downloads it. The classifier is
left out; convolutions are kept in half precision, normalisation in single.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model.backbone import build_backbone
from pipeline.model.weights import load_backbone_weights

NAME = "mobilenet_v2"
FOLDER = Path(__file__).resolve().parents[1] / "pipeline" / "model" / "imagenet"


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries that a backbone needs: (N, C, H, W) in half precision, vectors in single."""
    build_backbone(NAME, weights)  # Refuses what is not this network.
    kept = {k: v for k, v in weights.items() if k.startswith("features.") and not k.endswith("num_batches_tracked")}
    return {k: v.to(torch.float16 if v.ndim > 1 else torch.float32).contiguous() for k, v in kept.items()}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("weights", nargs="?", default="imagenet", help="default: torchvision's download")
    parse.add_argument("--out", type=Path, default=FOLDER)
    arguments = parse.parse_args()
    weights = load_backbone_weights(arguments.weights, NAME)
    assert weights is not None
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(packed(weights), arguments.out / f"{NAME}.safetensors")


if __name__ == "__main__":
    main()

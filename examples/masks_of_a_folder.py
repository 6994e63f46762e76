"""Build part masks for a folder of images and show how much of each part they show: masks_of_a_folder.py FOLDER."""

import sys
from pathlib import Path

import sgsfa


def main(folder: str, out: str = "masks.h5") -> None:
    """Build `out` from all images in `folder`."""
    report = sgsfa.build_masks(out, folder, progress=True)
    print(f"{report.done} of {report.total} images in {out}")
    masks = sgsfa.read_masks(out)
    shares = masks.parts.mean(axis=(0, 2, 3)) / 255
    for part, share in zip(("head", "upper", "lower", "shoes"), shares, strict=True):
        print(f"{part:6} covers {share:.1%} of an image on average")
    print("first image:", masks.names[0], "from", Path(folder).name)


if __name__ == "__main__":
    main(*sys.argv[1:])

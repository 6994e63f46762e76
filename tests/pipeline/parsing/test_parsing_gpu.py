"""Parsers on a GPU say what they say on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import MasksConfig
from pipeline.datasets.images import write_image
from pipeline.formats.masks import MaskFile
from pipeline.masks.build import build_masks
from pipeline.parsing.builtin import load_builtin
from pipeline.parsing.schp import SchpNet
from tests.helpers.drawn_person import figure

pytestmark = pytest.mark.gpu


def people(count: int) -> np.ndarray:
    return np.stack([np.roll(figure(), 3 * shift, axis=1) for shift in range(count)])


@pytest.mark.parametrize("half", [False, True])
def test_the_builtin_parser_says_the_same(half: bool) -> None:
    wanted = load_builtin("cpu", half=False).parse(people(8))
    got = load_builtin("cuda", half=half).parse(people(8)).cpu()
    assert (got - wanted).abs().mean() < (5e-3 if half else 5e-4)
    assert (got.argmax(1) == wanted.argmax(1)).float().mean() > (0.95 if half else 0.99)


def test_schp_says_the_same() -> None:
    torch.manual_seed(0)
    network = SchpNet(20).eval()
    images = torch.randn(2, 3, 128, 64)
    with torch.inference_mode():
        wanted = network(images)
        got = network.cuda()(images.cuda()).cpu()
    assert (got - wanted).norm() < 1e-2 * wanted.norm()


def test_a_mask_file_is_that_of_the_cpu(tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(40)]
    for name, image in zip(names, people(40), strict=True):
        write_image(tmp_path / name, image)
    for device in ("cpu", "cuda"):
        report = build_masks(tmp_path / f"{device}.h5", root=tmp_path, names=names, config=MasksConfig(device=device))
        assert report.done == 40
    one, two = (MaskFile.open(tmp_path / f"{device}.h5") for device in ("cpu", "cuda"))
    assert np.abs(one.body.astype(int) - two.body).mean() < 3
    assert np.abs(one.parts.astype(int) - two.parts).mean() < 3

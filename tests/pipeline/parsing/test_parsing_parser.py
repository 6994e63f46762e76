from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.parsing import parser as module
from pipeline.parsing.labels import load_label_set
from pipeline.parsing.parser import Parser, ParserInfo, load_parser, parse_flipped


class Thresholds:
    """Labels each pixel by its red value: a parser simple enough to know its answers."""

    input_size = (4, 6)

    def __init__(self, label_set: str = "lip-20") -> None:
        labels = load_label_set(label_set)
        self.info = ParserInfo("thresholds", "1", labels, "", "numpy", "float32")

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        red = torch.as_tensor(images)[..., 0].long()
        return torch.nn.functional.one_hot(red, self.info.label_set.count).permute(0, 3, 1, 2).float()


class Sided(Thresholds):
    """Knows only left and right: what lies in the image's left half is the person's right leg."""

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        soft = torch.zeros(len(images), 20, 4, 6)
        soft[:, 17, :, :3] = 1
        soft[:, 16, :, 3:] = 1
        return soft


def make(argument: str, label_set: str | None, device: str) -> Parser:
    assert (argument, device) == ("some:thing", "cpu")
    return Thresholds(label_set or "lip-20")


def make_nothing(argument: str, label_set: str | None, device: str) -> object:
    return object()


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [EntryPoint(name, value, module.ENTRY_POINTS) for name, value in points.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == module.ENTRY_POINTS else [])


def test_a_parser_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine=f"{__name__}:make")
    parser = load_parser("mine:some:thing", label_set="atr-18", device="cpu")
    assert parser.info.label_set.name == "atr-18"


def test_faulty_parsers_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gone="no_such_package:make", empty=f"{__name__}:make_nothing")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_parser("gone")
    with pytest.raises(ConfigError, match="returned a object"):
        load_parser("empty")


def test_unknown_parsers_are_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine=f"{__name__}:make")
    with pytest.raises(ConfigError) as caught:
        load_parser("onxx:model.onnx")
    assert caught.value.hint == "did you mean 'onnx:model.onnx'?"
    assert "mine" in (caught.value.expected or "")


@pytest.mark.parametrize("kind", ["schp", "onnx"])
def test_parsers_from_files_need_one(kind: str) -> None:
    with pytest.raises(ConfigError, match="needs a file"):
        load_parser(kind)


def test_flip_averages_and_swaps_left_and_right() -> None:
    images = np.zeros((1, 4, 6, 3), np.uint8)
    images[0, :, :3, 0] = 16  # left leg
    images[0, :, 3:, 0] = 18  # left shoe
    soft = parse_flipped(Thresholds(), images)
    # This parser names sides by colour, so its mirror image, swapped back, says the other side.
    assert soft[0, [16, 17, 18, 19], 0, 0].tolist() == [0.5, 0.5, 0, 0]
    assert soft[0, [16, 17, 18, 19], 0, 5].tolist() == [0, 0, 0.5, 0.5]


def test_flip_leaves_a_consistent_parser_alone() -> None:
    images = np.zeros((2, 4, 6, 3), np.uint8)
    parser = Sided()
    torch.testing.assert_close(parse_flipped(parser, images), parser.parse(images))


def test_flip_is_itself_consistent_under_mirrors() -> None:
    images = np.random.default_rng(0).integers(0, 20, (3, 4, 6, 3), dtype=np.uint8)
    parser = Thresholds()
    order = list(parser.info.label_set.flipped())
    mirrored = parse_flipped(parser, images[:, :, ::-1].copy())
    torch.testing.assert_close(mirrored.flip(3)[:, order], parse_flipped(parser, images))

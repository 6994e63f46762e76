"""Visibility by the built-in parser in place of the network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ExtractConfig, ModelConfig
from pipeline.features import parser_visibility
from pipeline.features.embedder import Embedder
from pipeline.features.parser_visibility import ParserVisibility
from pipeline.parsing.labels import load_label_set
from tests.helpers.checkpoints import HEIGHT, WIDTH, make_checkpoint

HAIR, COAT = 2, 7


class HeadAndCoat:
    """A parser that finds a head and a coat in the left half of bright images, and nothing in dark ones."""

    input_size = (256, 128)

    @property
    def info(self) -> object:
        return type("Info", (), {"label_set": load_label_set("lip-20")})

    def parse(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (256, 128, 3)
        soft = torch.zeros(len(images), 20, 64, 32)
        bright = images.float().mean((1, 2, 3)) > 100
        soft[bright, HAIR, 4:12, :16] = 1
        soft[bright, COAT, 12:40, :16] = 1
        return soft


def test_parser_visibility__follows_the_parsed_parts(monkeypatch) -> None:
    monkeypatch.setattr(parser_visibility, "load_builtin", lambda device: HeadAndCoat())
    visibility = ParserVisibility(ModelConfig(), torch.device("cpu"))
    images = torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    images[0] = 200
    # The bottom strip begins within the coat.
    assert visibility(images).tolist() == [[1, 1, 0, 0, 1, 1, 1], [0] * 7]


def test_embedder__takes_visibility_from_the_parser(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parser_visibility, "load_builtin", lambda device: HeadAndCoat())
    checkpoint = make_checkpoint(tmp_path / "model.safetensors")
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    features = Embedder.load(checkpoint, ExtractConfig(visibility="parser", device="cpu")).embed([image])
    assert features.visibility[0].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert features.thresholds.tolist() == [0.5] * 7
    assert features.provenance.values["visibility"] == "parser"
    own = Embedder.load(checkpoint, ExtractConfig(device="cpu")).embed([image])
    np.testing.assert_array_equal(own.parts, features.parts)
    assert own.provenance.values["visibility"] == "network"

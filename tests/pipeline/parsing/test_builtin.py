"""The built-in parser: its file, its output, and that it sees a person in a drawing of one."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import WeightsError
from pipeline.parsing.builtin import (
    CLASSES,
    BuiltinNet,
    BuiltinParser,
    fold_batch_norms,
    load_builtin,
    load_builtin_from,
)
from pipeline.parsing.labels import group_soft, load_grouping
from pipeline.parsing.parser import Parser
from tests.helpers.drawn_person import figure

WEIGHTS = Path(str(resources.files("pipeline.parsing") / "weights" / "builtin.safetensors"))


@pytest.fixture(scope="module")
def parser() -> BuiltinParser:
    return load_builtin("cpu", half=False)


def test_it_is_a_parser(parser: BuiltinParser) -> None:
    assert isinstance(parser, Parser)
    assert parser.input_size == (256, 128)
    assert parser.info.label_set.name == "lip-20"
    assert parser.info.precision == "float32"
    assert parser.info.fit == "pad"
    assert len(parser.info.weights_sha256) == 64


def test_the_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 10_000_000


def test_output_is_a_distribution_at_a_quarter_of_the_size(parser: BuiltinParser) -> None:
    images = torch.randint(0, 256, (3, 256, 128, 3), dtype=torch.uint8)
    soft = parser.parse(images)
    assert soft.shape == (3, CLASSES, 64, 32)
    assert soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(3, 64, 32), atol=1e-5)
    assert soft.min() >= 0


def test_an_array_does_as_well_as_a_tensor(parser: BuiltinParser) -> None:
    image = figure()[None]
    assert torch.equal(parser.parse(image), parser.parse(torch.from_numpy(image)))


@pytest.mark.parametrize("half", [False, True])
def test_the_batch_an_image_comes_in_hardly_matters(half: bool) -> None:
    parser = load_builtin("cpu", half=half)
    images = np.stack([np.roll(figure(), shift, axis=1) for shift in range(0, 35, 5)])
    together = parser.parse(images)
    alone = torch.cat([parser.parse(image[None]) for image in images])
    assert (together - alone).abs().max() < (0.06 if half else 1e-4)


def test_half_precision_gives_the_same_masks() -> None:
    image = figure()[None]
    half, full = (1 - load_builtin("cpu", half=half).parse(image)[:, 0] for half in (True, False))
    assert ((half >= 0.5) == (full >= 0.5)).float().mean() > 0.98


def test_a_drawn_person_has_the_head_above_the_shoes(parser: BuiltinParser) -> None:
    label_set = parser.info.label_set
    parts, body = group_soft(parser.parse(figure()[None]), label_set, load_grouping("spreid", label_set))
    assert 0.12 < float(body.mean()) < 0.75
    rows = torch.arange(64.0).view(1, 64, 1)
    centres = (parts[0] * rows).sum((1, 2)) / parts[0].sum((1, 2))
    assert centres[0] < centres[1] < centres[2] < centres[3]


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = BuiltinNet()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    network.eval()
    images = torch.randn(2, 3, 256, 128)
    with torch.inference_mode():
        assert torch.allclose(fold_batch_norms(network)(images), network(images), atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    network = BuiltinNet().train()
    network(torch.randn(2, 3, 64, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        load_builtin_from(tmp_path / "nothing.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:5000])
    with pytest.raises(WeightsError):
        load_builtin_from(damaged)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"classify.weight": torch.zeros(20, 64, 1, 1)}, path)
    with pytest.raises(WeightsError, match="another network"):
        load_builtin_from(path)
    save_file({"classify.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError):
        load_builtin_from(path)

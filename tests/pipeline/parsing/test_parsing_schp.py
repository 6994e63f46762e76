from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.datasets.images import on_square, resize
from pipeline.errors import WeightsError
from pipeline.parsing import schp
from pipeline.parsing.labels import load_label_set
from pipeline.parsing.schp import ActivatedNorm, SchpNet, SchpParser, load_schp

# Names and shapes of the weights in GoGoDuck912/Self-Correction-Human-Parsing (eb84c43), networks/AugmentCE2P.py.
PUBLISHED_KEYS = Path(__file__).resolve().parents[2] / "data" / "schp_lip_keys.json"

LEAKY = {
    *(f"context_encoding.stages.{stage}.2" for stage in range(4)),
    "context_encoding.bottleneck.1",
    *(f"edge.conv{number}.1" for number in (1, 2, 3)),
    "decoder.conv1.1",
    "decoder.conv2.1",
    "decoder.conv3.1",
    "decoder.conv3.3",
    "fushion.1",
}


def random_state(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Values for a checkpoint that keep activations in range; scales are negative half the time."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        elif len(shape) == 4:
            values *= (2.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
        elif name.endswith("weight"):
            values = values.sign() * (0.6 + 0.3 * values.abs().clamp(max=1))
        else:
            values *= 0.2
        state[name] = values
    return state


def literal_forward(state: dict[str, Tensor], image: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """The network once more, layer by layer from the state alone, with nothing shared with the module under test."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding, dilation)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        gamma = torch.abs(state[f"{name}.weight"]) + 1e-5
        shape = (1, -1, 1, 1)
        y = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + 1e-5)
        y = y * gamma.view(shape) + state[f"{name}.bias"].view(shape)
        return torch.where(y >= 0, y, 0.01 * y) if name in LEAKY else y

    def relu(x: Tensor) -> Tensor:
        return torch.clamp(x, min=0)

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)

    x = relu(norm("bn1", conv("conv1", image, stride=2, padding=1)))
    x = relu(norm("bn2", conv("conv2", x, padding=1)))
    x = relu(norm("bn3", conv("conv3", x, padding=1)))
    x = F.max_pool2d(x, 3, 2, 1)
    taps = []
    for number, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 2, 1), (1, 1, 1, 2), strict=True), 1):
        for block in range(count):
            here = f"layer{number}.{block}"
            step = stride if block == 0 else 1
            y = relu(norm(f"{here}.bn1", conv(f"{here}.conv1", x)))
            y = conv(f"{here}.conv2", y, stride=step, padding=dilation, dilation=dilation)
            y = relu(norm(f"{here}.bn2", y))
            y = norm(f"{here}.bn3", conv(f"{here}.conv3", y))
            if f"{here}.downsample.0.weight" in state:
                x = norm(f"{here}.downsample.1", conv(f"{here}.downsample.0", x, stride=step))
            x = relu(x + y)
        taps.append(x)
    x1, x2, x3, x4 = taps
    context = []
    for stage, size in enumerate((1, 2, 3, 6)):
        here = f"context_encoding.stages.{stage}"
        context.append(up(norm(f"{here}.2", conv(f"{here}.1", F.adaptive_avg_pool2d(x4, size))), x4))
    y = norm("context_encoding.bottleneck.1", conv("context_encoding.bottleneck.0", torch.cat([*context, x4], 1), 1, 1))
    y = up(norm("decoder.conv1.1", conv("decoder.conv1.0", y)), x1)
    y = torch.cat([y, norm("decoder.conv2.1", conv("decoder.conv2.0", x1))], 1)
    y = norm("decoder.conv3.1", conv("decoder.conv3.0", y))
    y = norm("decoder.conv3.3", conv("decoder.conv3.2", y))
    edges = [up(norm(f"edge.conv{n}.1", conv(f"edge.conv{n}.0", x)), x1) for n, x in ((1, x1), (2, x2), (3, x3))]
    y = norm("fushion.1", conv("fushion.0", torch.cat([y, *edges], 1)))
    return conv("fushion.3", y)


def shapes_of(net: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in net.state_dict().items()}


def test_keys_and_shapes_are_the_published_ones() -> None:
    published = json.loads(PUBLISHED_KEYS.read_text())
    with torch.device("meta"):
        net = SchpNet(20)
    assert shapes_of(net) == published
    assert len(published) == 603


def test_leaky_sites_are_exactly_the_thirteen() -> None:
    with torch.device("meta"):
        net = SchpNet(20)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, ActivatedNorm)}
    assert len(norms) == 119
    assert {name for name, module in norms.items() if module.leaky} == LEAKY


def test_the_normalisation_rule() -> None:
    norm = ActivatedNorm(3, leaky=True)
    weight, mean, variance, bias = torch.tensor([[-2.0, 0.0, 0.5], [1.0, 0, -1], [4.0, 1, 0.25], [0.1, -0.2, 0.3]])
    norm.load_state_dict({"weight": weight, "running_mean": mean, "running_var": variance, "bias": bias})
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    for channel, (gamma, mu, var, beta) in enumerate(zip(weight, mean, variance, bias, strict=True)):
        expected = (x[:, channel] - mu) / (var + 1e-5) ** 0.5 * (abs(float(gamma)) + 1e-5) + beta
        expected = torch.where(expected < 0, expected * 0.01, expected)
        torch.testing.assert_close(norm(x)[:, channel], expected)


def test_a_narrow_net_equals_the_literal_reference() -> None:
    blocks = (1, 2, 2, 1)
    net = SchpNet(7, width=8, blocks=blocks).eval()
    state = random_state(shapes_of(net))
    assert any(bool((value < 0).any()) for name, value in state.items() if name.endswith("bn1.weight"))
    net.load_state_dict(state, strict=True)
    image = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        mine, reference = net(image), literal_forward(state, image, blocks)
    assert mine.shape == (2, 7, 17, 17)
    assert float(reference.std()) > 0.05
    torch.testing.assert_close(mine, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [473, 512, 97])
def test_output_has_a_quarter_of_the_size(side: int) -> None:
    net = SchpNet(7, width=4, blocks=(1, 1, 1, 1)).eval()
    parser = SchpParser(net, load_label_set("pascal-7"), side, weights_sha256="", device=torch.device("cpu"))
    soft = parser.parse(np.zeros((1, side, side, 3), np.uint8))
    assert tuple(soft.shape[2:]) == ((side + 3) // 4, (side + 3) // 4)
    torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]))


def test_blue_comes_first_and_is_normalised_by_its_own_mean() -> None:
    seen = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 20, 2, 2)

    parser = SchpParser(Recorder(), load_label_set("lip-20"), 2, weights_sha256="", device=torch.device("cpu"))
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (255, 128, 0)  # RGB
    parser.parse(image)
    expected = [(0.0 - 0.406) / 0.225, (128 / 255 - 0.456) / 0.224, (1.0 - 0.485) / 0.229]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    black = [(0.0 - mean) / std for mean, std in ((0.406, 0.225), (0.456, 0.224), (0.485, 0.229))]
    assert seen[0][0, :, 1, 1].tolist() == pytest.approx(black, abs=1e-6)


def test_images_are_centred_on_a_black_square() -> None:
    image = np.full((128, 64, 3), 200, np.uint8)
    square, area = on_square(image)
    assert square.shape == (128, 128, 3)
    assert area == (0.0, 0.25, 1.0, 0.75)
    assert (square[:, 32:96] == 200).all()
    assert not square[:, :32].any()
    assert not square[:, 96:].any()
    scaled = resize(square, 473, 473)
    assert (scaled[:, 121:352] == 200).all()
    assert not scaled[:, :115].any()
    assert not scaled[:, 358:].any()


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("classes", "option", "label_set", "side"),
    [
        (20, None, "lip-20", 473),
        (18, None, "atr-18", 512),
        (7, None, "pascal-7", 512),
        (20, "cihp-20", "cihp-20", 473),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_number_of_classes_tells_the_published_checkpoints_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    classes: int,
    option: str | None,
    label_set: str,
    side: int,
    prefix: str,
) -> None:
    narrow = functools.partial(SchpNet, width=4, blocks=(1, 1, 1, 1))
    monkeypatch.setattr(schp, "SchpNet", narrow)
    state = {prefix + name: value for name, value in random_state(shapes_of(narrow(classes))).items()}
    # Those saved again by others count steps, of which the published ones know nothing.
    state[prefix + "bn1.num_batches_tracked"] = torch.tensor(3)
    path = save(tmp_path / "some.pth", {"state_dict": state} if prefix else state)
    parser = load_schp(path, label_set=option, device="cpu")
    assert parser.info.label_set.name == label_set
    assert parser.input_size == (side, side)
    assert (parser.info.fit, parser.info.device) == ("square", "cpu")
    with pytest.raises(WeightsError, match=f"{classes} classes, voc-21 has 21"):
        load_schp(path, label_set="voc-21", device="cpu")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "not an SCHP checkpoint"),
        ({"state_dict": {"module.fushion.3.weight": torch.zeros(20, 256, 1, 1)}}, "does not fit the SCHP network"),
        ({"state_dict": {"module.fushion.3.weight": torch.zeros(9, 256, 1, 1)}}, "9 classes"),
        ({"epoch": 3}, "no tensors"),
        ([1, 2], "holds a list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, found: str) -> None:
    with pytest.raises(WeightsError, match=found):
        load_schp(save(tmp_path / "model.pth", content), device="cpu")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><p>quota exceeded", b"version https://git-lfs.github.com/spec/v1"]
)
def test_load_schp__reads_its_file_as_every_reader_of_weights(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WeightsError, match="SCHP checkpoint not found"):
        load_schp(tmp_path / "model.pth", device="cpu")
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="SCHP checkpoint is"):
        load_schp(tmp_path / "model.pth", device="cpu")


@pytest.mark.slow
def test_a_whole_checkpoint_loads_and_equals_the_literal_reference(tmp_path: Path) -> None:
    published = json.loads(PUBLISHED_KEYS.read_text())
    state = random_state(published)
    path = save(tmp_path / "lip.pth", {"state_dict": {f"module.{name}": value for name, value in state.items()}})
    parser = load_schp(path, device="cpu")
    assert parser.info.label_set.name == "lip-20"
    assert parser.input_size == (473, 473)
    images = np.random.default_rng(0).integers(0, 256, (1, 473, 473, 3), dtype=np.uint8)
    with torch.inference_mode():
        reference = literal_forward(state, parser.normalised(images), (3, 4, 23, 3)).softmax(1)
    soft = parser.parse(images)
    assert soft.shape == (1, 20, 119, 119)
    assert float((soft - reference).abs().max()) < 1e-4
    assert float(reference.std()) > 0.01

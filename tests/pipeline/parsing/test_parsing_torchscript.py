from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, FormatError, WeightsError
from pipeline.parsing.parser import load_parser
from pipeline.parsing.torchscript import load_torchscript
from pipeline.runtime.memory import out_of_memory

# torch announces the end of TorchScript at each of its calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SIDECAR = 'label_set = "lip-20"\nheight = 64\nwidth = 32\ntrust = true\n'
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 4, stride=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


def script(folder: Path, module: nn.Module, text: str = SIDECAR) -> Path:
    path = folder / "model.pt"
    torch.jit.trace(module.eval(), torch.zeros(1, 3, 64, 32), check_trace=False).save(str(path))
    (folder / "model.pt.toml").write_text(text)
    return path


def test_a_module_equals_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = Pair()
    parser = load_parser(f"torchscript:{script(tmp_path, pair)}", device="cpu")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = ((torch.from_numpy(IMAGES) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = pair.conv(values).softmax(1)
    torch.testing.assert_close(parser.parse(IMAGES), expected)
    assert len(parser.info.weights_sha256) == 64


class Greedy(nn.Module):
    """Asks for petabytes for each image beyond so many."""

    def __init__(self, spared: int) -> None:
        super().__init__()
        self.spared = spared

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beyond = max(0, x.shape[0] - self.spared)
        return x.repeat(1, 7, 1, 1)[:, :20], torch.empty([beyond, 1 << 50])


def test_exhausted_memory_is_no_fault_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    (tmp_path / "model.pt.toml").write_text(SIDECAR)
    torch.jit.script(Greedy(spared=1)).save(str(path))
    parser = load_parser(f"torchscript:{path}", device="cpu")
    with pytest.raises(RuntimeError) as caught:
        parser.parse(IMAGES)
    assert out_of_memory(caught.value)


def test_it_does_not_run_without_trust(tmp_path: Path) -> None:
    path = script(tmp_path, Pair(), SIDECAR.replace("trust = true\n", ""))
    with pytest.raises(ConfigError, match="a TorchScript file is a program") as caught:
        load_torchscript(path, device="cpu")
    assert caught.value.expected == "trust = true in model.pt.toml"


def test_other_files_and_other_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found"):
        load_torchscript(tmp_path / "missing.pt", device="cpu")
    (tmp_path / "model.pt.toml").write_text(SIDECAR)
    (tmp_path / "model.pt").write_text("no module")
    with pytest.raises(WeightsError, match="text file"):
        load_torchscript(tmp_path / "model.pt", device="cpu")
    with pytest.raises(FormatError, match="fails on a batch"):
        load_torchscript(script(tmp_path, Pair(), SIDECAR + 'layout = "nhwc"\n'), device="cpu")
    with pytest.raises(FormatError, match=r"shape \(1, 3, 64, 32\)"):
        load_torchscript(script(tmp_path, nn.Identity()), device="cpu")

"""Self-Correction for Human Parsing (SCHP): its published checkpoints in plain torch.

Li et al., "Self-Correction for Human Parsing", TPAMI 2020. The network is CE2P on ResNet-101; its modules have the
names of the authors' checkpoints, so that these load strictly. Two rules are not visible in the weights and necessary:
every normalisation is the early in-place ABN, whose scale is |weight| + 1e-5, and a LeakyReLU of slope 0.01 follows
exactly the 13 normalisations that the authors left with their default activation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import WeightsError
from pipeline.formats.foreign import load_state_dict
from pipeline.parsing.files import SCHP_VERSION
from pipeline.parsing.interface import ParserInfo
from pipeline.parsing.labels import LabelSet, load_label_set
from pipeline.runtime.device import resolve_device
from pipeline.runtime.files import sha256_file

# Label set and input side of the published checkpoints, by their number of classes.
_PUBLISHED = {20: ("lip-20", 473), 18: ("atr-18", 512), 7: ("pascal-7", 512)}
_CLASSIFIER = "fushion.3.weight"

_MEAN_BGR = (0.406, 0.456, 0.485)
_STD_BGR = (0.225, 0.224, 0.229)


class ActivatedNorm(nn.Module):
    """Normalisation of the early in-place ABN, for inference.

    y = act((x - running_mean) / sqrt(running_var + 1e-5) * (|weight| + 1e-5) + bias), with act the identity, or
    LeakyReLU(0.01) if `leaky`. It has no `num_batches_tracked`, as its checkpoints have none.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, leaky: bool = False) -> None:
        super().__init__()
        self.leaky = leaky
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes, s, s) of normalised BGR images (B, 3, S, S).

        s is about S / 4: 119 for 473, 128 for 512.
        """
        scale = self.weight.abs() + 1e-5
        x = F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, training=False, eps=1e-5)
        return F.leaky_relu_(x, 0.01) if self.leaky else x


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = ActivatedNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = ActivatedNorm(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = ActivatedNorm(4 * planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * planes:
            shortcut = nn.Conv2d(channels, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, ActivatedNorm(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.relu_(self.bn3(self.conv3(x)) + residual)


def _stage(channels: int, planes: int, blocks: int, stride: int, dilation: int = 1) -> nn.Sequential:
    layers = [_Bottleneck(channels, planes, stride, dilation)]
    layers += [_Bottleneck(4 * planes, planes, 1, dilation) for _ in range(1, blocks)]
    return nn.Sequential(*layers)


def _unit(inputs: int, outputs: int, kernel: int = 1) -> tuple[nn.Conv2d, ActivatedNorm]:
    """A convolution and its normalisation with LeakyReLU."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), ActivatedNorm(outputs, leaky=True)


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class _ContextEncoding(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *_unit(channels, outputs)) for size in (1, 2, 3, 6)
        )
        self.bottleneck = nn.Sequential(*_unit(channels + 4 * outputs, outputs, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        pooled = [_upsample(stage(x), x) for stage in self.stages]
        encoded: Tensor = self.bottleneck(torch.cat([*pooled, x], dim=1))
        return encoded


class _Edge(nn.Module):
    def __init__(self, channels: tuple[int, int, int], middle: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_unit(channels[0], middle))
        self.conv2 = nn.Sequential(*_unit(channels[1], middle))
        self.conv3 = nn.Sequential(*_unit(channels[2], middle))
        # The edge map itself is a by-product of training; its two layers exist so that checkpoints load strictly.
        self.conv4 = nn.Conv2d(middle, 2, 3, padding=1)
        self.conv5 = nn.Conv2d(6, 2, 1)

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        features = self.conv1(x1), _upsample(self.conv2(x2), x1), _upsample(self.conv3(x3), x1)
        return torch.cat(features, dim=1)


class _Decoder(nn.Module):
    def __init__(self, context: int, low: int, middle: int, reduced: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_unit(context, middle))
        self.conv2 = nn.Sequential(*_unit(low, reduced))
        self.conv3 = nn.Sequential(*_unit(middle + reduced, middle), *_unit(middle, middle))
        # The labels before fusion with the edges; as for the edge map, only the checkpoint needs it.
        self.conv4 = nn.Conv2d(middle, classes, 1)

    def forward(self, context: Tensor, low: Tensor) -> Tensor:
        decoded: Tensor = self.conv3(torch.cat([_upsample(self.conv1(context), low), self.conv2(low)], dim=1))
        return decoded


class SchpNet(nn.Module):
    """CE2P with edge fusion on ResNet-101.

    All published checkpoints have a stem of 64 channels (`width`) and the residual blocks of ResNet-101.
    """

    def __init__(self, classes: int, *, width: int = 64, blocks: tuple[int, int, int, int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, padding=1, bias=False)
        self.bn1 = ActivatedNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = ActivatedNorm(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = ActivatedNorm(2 * width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(2 * width, width, blocks[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, blocks[3], stride=1, dilation=2)
        middle = 4 * width
        self.context_encoding = _ContextEncoding(32 * width, 8 * width)
        self.edge = _Edge((4 * width, 8 * width, 16 * width), middle)
        self.decoder = _Decoder(8 * width, 4 * width, middle, 3 * width // 4, classes)
        # The authors' spelling, and so the checkpoints'.
        self.fushion = nn.Sequential(*_unit(4 * middle, middle), nn.Dropout2d(0.1), nn.Conv2d(middle, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Label scores.

        Args:
            images: (B, 3, S, S) float, BGR, normalised.

        Returns:
            (B, classes, s, s) logits with s about S / 4: 119 for 473, 128 for 512.
        """
        x = F.relu_(self.bn1(self.conv1(images)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = F.relu_(self.bn3(self.conv3(x)))
        x1 = self.layer1(self.maxpool(x))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        x4 = self.layer4(x3)
        parsing = self.decoder(self.context_encoding(x4), x1)
        logits: Tensor = self.fushion(torch.cat([parsing, self.edge(x1, x2, x3)], dim=1))
        return logits


class SchpParser:
    """SCHP as a `Parser`. Images keep their proportions on a black square, as in the authors' extractor."""

    def __init__(
        self, net: nn.Module, label_set: LabelSet, side: int, *, weights_sha256: str, device: torch.device
    ) -> None:
        self._net = net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self._mean = torch.tensor(_MEAN_BGR, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD_BGR, device=device).view(1, 3, 1, 1)
        self.input_size = (side, side)
        self.info = ParserInfo(
            name="schp",
            version=SCHP_VERSION,
            label_set=label_set,
            weights_sha256=weights_sha256,
            backend="torch",
            precision="float32",
            fit="square",
            # Stated, because a forward pass to find out takes a second here.
            device=str(device),
        )

    @torch.inference_mode()
    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Label a batch; see `Parser.parse`."""
        logits = self._net(self.normalised(images))
        return torch.softmax(logits.float(), dim=1)

    def normalised(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the input of the network: (B, 3, S, S) float in the channel order blue, green, red."""
        rgb = torch.as_tensor(images).to(self._device).permute(0, 3, 1, 2)
        return rgb.flip(1).float().div_(255).sub_(self._mean).div_(self._std)


def load_schp(path: Path, *, label_set: str | None = None, device: str = "auto") -> SchpParser:
    """Load a published checkpoint (`exp-schp-201908261155-lip.pth` and the like), without running any code in it.

    The label set follows from the number of classes; `label_set` is for checkpoints trained on other labels.

    Raises:
        WeightsError: The file is missing, unsafe, or not an SCHP checkpoint of 20, 18 or 7 classes.
    """
    # nn.BatchNorm2d's counter of training steps has no part in the prediction.
    state = load_state_dict(path, title="SCHP checkpoint")
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}
    if _CLASSIFIER not in state or state[_CLASSIFIER].ndim != 4:
        raise WeightsError(
            f"not an SCHP checkpoint: no tensor {_CLASSIFIER!r}", where=path, expected="a checkpoint of the authors"
        )
    classes = state[_CLASSIFIER].shape[0]
    if label_set is None and classes not in _PUBLISHED:
        raise WeightsError(
            f"the checkpoint has {classes} classes, which no published label set has",
            where=path,
            expected="20 (lip), 18 (atr) or 7 (pascal)",
            hint="set masks.label_set to a TOML file",
        )
    labels = load_label_set(label_set or _PUBLISHED[classes][0])
    if labels.count != classes:
        raise WeightsError(f"the checkpoint has {classes} classes, {labels.name} has {labels.count}", where=path)
    with torch.device("meta"):
        net = SchpNet(classes)
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError("the checkpoint does not fit the SCHP network", where=path, cause=error) from None
    side = _PUBLISHED.get(classes, ("", 473))[1]
    return SchpParser(net, labels, side, weights_sha256=sha256_file(path), device=resolve_device(device))

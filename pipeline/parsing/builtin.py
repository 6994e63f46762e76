"""The built-in human parser: a small network trained by `tools/parser`, with weights in this package.

A MobileNetV2 encoder (Sandler et al., CVPR 2018) and a feature pyramid over its strides 2, 4, 8, 16 and 32 (Lin et al.,
CVPR 2017) predict the 20 labels of LIP at a quarter of the input size. `weights/card.md` describes training data,
accuracy and limits.
"""

from __future__ import annotations

import copy
import itertools
from importlib import resources
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import mobilenet_v2

from pipeline.errors import WeightsError
from pipeline.formats.foreign import load_state_dict
from pipeline.parsing.files import BUILTIN_VERSION
from pipeline.parsing.interface import ParserInfo
from pipeline.parsing.labels import load_label_set
from pipeline.runtime.files import sha256_file

INPUT_SIZE = (256, 128)
LABEL_SET = "lip-20"
CLASSES = 20
_LEARNT = 22
"""The network has labels for bags and occluding objects; the parser returns both as background."""

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_TAPS = (1, 3, 6, 13, 17)
_CHANNELS = (16, 24, 32, 96, 320)


class BuiltinNet(nn.Module):
    """The network, with `width` channels of the pyramid at strides 32, 16 and 8.

    At stride 4, where three quarters of the pyramid's operations are, it has `fine_width`. `classes` are the labels of
    LIP, then kinds of background.
    """

    def __init__(self, width: int = 96, fine_width: int = 64, classes: int = _LEARNT) -> None:
        super().__init__()
        # The last 1x1 convolution of MobileNetV2 only feeds its classifier.
        self.encoder = mobilenet_v2(weights=None).features[:18]
        finest, fine, middle, coarse, deep = _CHANNELS
        self.from_deep = _block(deep, width, 1)
        self.context = _block(deep, width, 1)
        self.from_coarse = _block(coarse, width, 1)
        self.from_middle = _block(middle, width, 1)
        self.from_fine = _block(fine, fine_width, 1)
        # Crops of 128 x 64 are enlarged twofold: stride 2 still has all their pixels, which decide outlines.
        self.from_finest = nn.Conv2d(finest, fine_width, 3, stride=2, padding=1)
        self.fuse_coarse = _block(width, width, 3)
        self.fuse_middle = _block(width, width, 3)
        self.narrow = _block(width, fine_width, 1)
        self.fuse_fine = nn.Sequential(_block(fine_width, fine_width, 3), _block(fine_width, fine_width, 3))
        self.classify = nn.Conv2d(fine_width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes, H / 4, W / 4) of ImageNet-normalised RGB images (B, 3, H, W).

        H and W are multiples of 32.
        """
        taps: list[Tensor] = []
        x = images
        for index, layer in enumerate(self.encoder):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        finest, fine, middle, coarse, deep = taps
        # The mean over the image carries pose and visibility, which one 3x3 at stride 32 cannot see.
        x = self.from_deep(deep) + self.context(deep.mean((2, 3), keepdim=True))
        x = self.fuse_coarse(self.from_coarse(coarse) + _like(x, coarse))
        x = self.fuse_middle(self.from_middle(middle) + _like(x, middle))
        x = self.from_fine(fine) + self.from_finest(finest) + _like(self.narrow(x), fine)
        x = self.fuse_fine(x)
        return cast(Tensor, self.classify(x))


class BuiltinParser:
    """The network as a `Parser`, copied to a device; `half`: compute in bfloat16 (None: if the device has it)."""

    def __init__(
        self, network: BuiltinNet, device: torch.device, *, weights_sha256: str = "", half: bool | None = None
    ) -> None:
        self._device = device
        self._half = has_native_bfloat16(device) if half is None else half
        self._network = fold_batch_norms(network).to(device).to(memory_format=torch.channels_last)
        self._scale = torch.tensor([1.0 / (255.0 * std) for std in _STD], device=device)
        self._shift = torch.tensor([-mean / std for mean, std in zip(_MEAN, _STD, strict=True)], device=device)
        self.input_size = INPUT_SIZE
        self.info = ParserInfo(
            name="builtin",
            version=BUILTIN_VERSION,
            label_set=load_label_set(LABEL_SET),
            weights_sha256=weights_sha256,
            backend="torch",
            precision="bfloat16" if self._half else "float32",
            fit="pad",
            device=str(device),
        )

    @torch.inference_mode()
    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the probability of each LIP label, (B, 20, 64, 32) float32, of uint8 RGB images (B, 256, 128, 3)."""
        pixels = torch.as_tensor(images).to(self._device).to(torch.float32)
        # (B, H, W, 3) viewed as (B, 3, H, W) is channels-last memory.
        batch = (pixels * self._scale).add_(self._shift).permute(0, 3, 1, 2)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._network(batch)
        soft = cast(Tensor, logits).float().softmax(1)
        soft[:, 0] += soft[:, CLASSES:].sum(1)
        return soft[:, :CLASSES].contiguous()


def load_builtin(device: torch.device | str = "cpu", *, half: bool | None = None) -> BuiltinParser:
    """Load the parser with the weights of this package. See `load_builtin_from`."""
    with resources.as_file(resources.files("pipeline.parsing") / "weights" / "builtin.safetensors") as path:
        return load_builtin_from(path, device, half=half)


def load_builtin_from(path: Path, device: torch.device | str = "cpu", *, half: bool | None = None) -> BuiltinParser:
    """Load the parser with weights that `tools.parser.train` wrote.

    `half` is whether to compute in bfloat16; None: if the device supports it natively.

    Raises:
        WeightsError: The file is missing, damaged or belongs to another network.
    """
    network = BuiltinNet()
    state = {name: tensor.float() for name, tensor in load_state_dict(path, title="built-in parser").items()}
    # Batch counters, which only training needs, are not stored.
    wanted = {
        name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    found = {name: value.shape for name, value in state.items()}
    if found != wanted:
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise WeightsError(
            f"the weights belong to another network: {len(different)} tensors differ, such as {different[0]}",
            where=path,
            expected="a file written by tools.parser.train of this version",
        )
    network.load_state_dict(state, strict=False)
    return BuiltinParser(network, torch.device(device), weights_sha256=sha256_file(path), half=half)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Older releases of torch cannot tell; float32 works everywhere.
        abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return False


def fold_batch_norms(network: BuiltinNet) -> BuiltinNet:
    """Return a copy in evaluation mode with batch normalisations folded into the preceding convolutions."""
    folded = copy.deepcopy(network).eval()
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (name, layer), (following, norm) in itertools.pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, following, nn.Identity())
    return folded


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)

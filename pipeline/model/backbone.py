"""Backbones by one interface: an early stage at stride 4 and a late stage at stride 16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import BACKBONES, suggestion
from pipeline.errors import ConfigError, WeightsError, first_line

REFERENCE_LENGTH = 2048
"""Length of the feature that learning rates of linear maps on it are known for: ResNet-50's."""

_MOBILENET_EARLY = 4
"""Blocks 0-3 of torchvision's MobileNetV2 features end at stride 4 (24 channels)."""


@dataclass(frozen=True)
class BackboneInfo:
    """What the rest of the network must know of a backbone.

    Attributes:
        early_channels: Channels of `early` at stride 4.
        late_channels: Channels of `late` at stride 16.
    """

    early_channels: int
    late_channels: int


class Backbone(nn.Module):
    """`late(early(images))`: stage-1 features at stride 4, stage-4 features at stride 16.

    The body attention sits between the two, so they are separate modules.

    Args:
        early: Images (B, 3, H, W) -> (B, early_channels, H/4, W/4).
        late: -> (B, late_channels, H/16, W/16).
        info: Their channels.
    """

    def __init__(self, early: nn.Module, late: nn.Module, info: BackboneInfo) -> None:
        super().__init__()
        self.early = early
        self.late = late
        self.info = info


def build_backbone(name: str, weights: Mapping[str, Tensor] | None = None) -> Backbone:
    """Build a backbone whose last stage has stride 1, so that 256x128 images give 16x8 features (paper, Sec. 3).

    Args:
        name: One of `BACKBONES`, or `timm:NAME`.
        weights: State dict of the classification network of that name, as torchvision (or timm) keys it; the
            classifier's entries may be absent and are ignored. None: random initial weights.

    Raises:
        ConfigError: There is no such backbone.
        WeightsError: The weights do not fit it.
    """
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), weights)
    if name not in BACKBONES:
        raise ConfigError(
            f"there is no backbone {name!r}",
            where="model.backbone",
            expected=" | ".join([*BACKBONES, "timm:NAME"]),
            hint=suggestion(name, BACKBONES),
        )
    network = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        _load(network, weights, name)
    return _mobilenet(network) if name == "mobilenet_v2" else _resnet(network)


def _load(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    own = network.state_dict()
    needed = {key for key in own if not key.startswith(("fc.", "classifier."))}
    weights = _without_prefix(weights, {key: own[key] for key in sorted(needed)})
    # BatchNorm's counters are missing from files of old PyTorch versions and play no part in the result.
    missing = sorted(key for key in needed - set(weights) if not key.endswith("num_batches_tracked"))
    wrong = sorted(key for key in needed & set(weights) if own[key].shape != weights[key].shape)
    if missing or wrong:
        first = (missing or wrong)[0]
        problem = "is missing" if missing else f"has shape {tuple(weights[first].shape)}"
        raise WeightsError(
            f"these weights are not those of {name}: {first!r} {problem}",
            expected=f"{tuple(own[first].shape)} for {first!r}, and {len(needed)} entries as its package names them",
            hint=f"the file has {', '.join(sorted(weights)[:3])}, ...; name its own network as model.backbone",
        )
    network.load_state_dict({key: weights[key] for key in needed if key in weights}, strict=False)


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Entries as the network names them, where a file of a larger model has them under a prefix of their own.

    Trainers of re-identification and of self-supervision write `backbone.`, `base.` or `encoder_q.` before them.

    Args:
        weights: The file's entries.
        own: The network's that are needed.

    Raises:
        WeightsError: The file has several such networks, and none is known for the trained one.
    """
    counted = [key for key in own if not key.endswith("num_batches_tracked")]

    def fits(prefix: str) -> bool:
        return all(prefix + key in weights and weights[prefix + key].shape == own[key].shape for key in counted)

    first = counted[0]
    found = sorted(name.removesuffix(first) for name in weights if name.endswith(first))
    fitting = [prefix for prefix in found if fits(prefix)]
    if not fitting or "" in fitting:
        return weights
    # Of MoCo's two encoders one follows the other and is not the result. In other methods it is.
    known = [prefix for prefix in fitting if prefix.endswith(_TRAINED)]
    if len(fitting) > 1 and len(known) != 1:
        raise WeightsError(
            f"the file has several networks of this kind: {', '.join(fitting)}",
            hint="keep the entries of one of them in a file of their own",
        )
    prefix = (known or fitting)[0]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _resnet(network: nn.Module) -> Backbone:
    last = network.get_submodule("layer4")
    for module in last.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
    early = nn.Sequential(*(network.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool", "layer1")))
    late = nn.Sequential(*(network.get_submodule(part) for part in ("layer2", "layer3", "layer4")))
    return Backbone(early, late, BackboneInfo(_out_channels(early), _out_channels(late)))


def _mobilenet(network: nn.Module) -> Backbone:
    features = network.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    strided = [module for module in features.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    # Strides 2, 4, 8, 16, 32: the fifth is given up for a 16x8 map.
    strided[-1].stride = (1, 1)
    early, late = features[:_MOBILENET_EARLY], features[_MOBILENET_EARLY:]
    return Backbone(early, late, BackboneInfo(_out_channels(early), _out_channels(late)))


def _out_channels(module: nn.Module) -> int:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


_TRAINED = ("encoder_q.", "base_encoder.")
"""Beginnings of entries of the network that MoCo trained; another one followed it."""

_TIMM_EXPECTED = (
    "a convolutional network whose stages follow each other, with features at strides 4 and 16 (docs/tasks/train.md "
    "names some); no transformers"
)


class _TimmLate(nn.Module):
    """The part of a timm feature extractor after its stride-4 features, as a module of its own."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: network.get_submodule(name) for name in names})

    def forward(self, features: Tensor) -> Tensor:
        for part in self.parts.values():
            features = part(features)
        return features


def _timm(name: str, weights: Mapping[str, Tensor] | None) -> Backbone:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"backbone timm:{name} needs the package timm", where="model.backbone", hint="pip install timm"
        ) from None
    try:
        network: Any = timm.create_model(name, features_only=True, output_stride=16, pretrained=False)
    # timm's models fail in many ways where they cannot do that.
    except Exception as error:
        raise ConfigError(
            f"timm cannot build {name!r} with features at output stride 16: {first_line(error)}",
            where="model.backbone",
            expected=_TIMM_EXPECTED,
        ) from error
    info: Any = network.feature_info
    reductions = list(info.reduction())
    if 4 not in reductions or reductions[-1] != 16 or not isinstance(network, nn.ModuleDict):
        raise ConfigError(
            f"timm's {name!r} has features at strides {reductions}", where="model.backbone", expected=_TIMM_EXPECTED
        )
    if weights is not None:
        _load(network, _flattened(weights, list(network.keys())), f"timm:{name}")
    index = len(reductions) - 1 - reductions[::-1].index(4)
    # Where a network's stages lie within another module, timm names the flattened ones by an underscore.
    module = info[index]["module"]
    names = list(network.keys())
    boundary = next((name for name in (module.replace(".", "_"), module.split(".")[0]) if name in names), None)
    if boundary is None:
        raise ConfigError(
            f"timm's {name!r} cannot be cut after its stride-4 features",
            where="model.backbone",
            expected=_TIMM_EXPECTED,
        )
    cut = names.index(boundary) + 1
    channels = info.channels()
    return Backbone(
        _TimmLate(network, names[:cut]),
        _TimmLate(network, names[cut:]),
        BackboneInfo(int(channels[index]), int(channels[-1])),
    )


def _flattened(weights: Mapping[str, Tensor], children: Sequence[str]) -> dict[str, Tensor]:
    """A whole timm network's entries as its extractor of features names them: `stages.0.` becomes `stages_0.`."""
    moved = {}
    for child in children:
        head, _, number = child.rpartition("_")
        if head and number.isdigit():
            moved[f"{head}.{number}."] = f"{child}."
    renamed = {}
    for name, value in weights.items():
        # At the beginning, or behind a larger model's prefix.
        old = next((old for old in moved if f".{name}".find(f".{old}") >= 0), None)
        if old is not None:
            head, _, tail = f".{name}".partition(f".{old}")
            name = f"{head}.{moved[old]}{tail}".removeprefix(".")
        renamed[name] = value
    return renamed


def initialise(module: nn.Module) -> None:
    """Kaiming weights for convolutions and linear layers, identity for normalisation, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode="fan_out" if isinstance(part, nn.Conv2d) else "fan_in")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def classifier(features: int, classes: int) -> nn.Linear:
    """A bias-free identity classifier with small initial weights (Luo et al., "Bag of Tricks", 2019)."""
    layer = nn.Linear(features, classes, bias=False)
    torch.nn.init.normal_(layer.weight, std=0.001)
    return layer

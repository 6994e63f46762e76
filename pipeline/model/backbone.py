"""Backbones by one interface: features at strides 4, 8, 16 and, from the last stage, 16 again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import BACKBONES, suggestion
from pipeline.errors import ConfigError, WeightsError

REFERENCE_DIM = 2048
"""Dimension of ResNet-50's feature, for which published learning rates of linear layers hold."""

_MOBILENET_CUTS = (4, 7, 14)
"""torchvision's MobileNetV2 has strides 4, 8, 16 and 16 at the ends of these blocks (24, 32, 96, 1,280 channels)."""

PartSource = Literal["last", "deep", "middle"]


@dataclass(frozen=True)
class BackboneInfo:
    """Channels of a backbone's feature maps at strides 4, 8, 16 and, after the last stage, 16."""

    early_channels: int
    middle_channels: int
    deep_channels: int
    late_channels: int

    def channels_of(self, source: PartSource) -> int:
        """Return the channels of the map of that name."""
        return {"last": self.late_channels, "deep": self.deep_channels, "middle": self.middle_channels}[source]


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """Feature maps of B images after the early stage.

    Attributes:
        middle: (B, middle_channels, H/8, W/8).
        deep: (B, deep_channels, H/16, W/16).
        last: (B, late_channels, H/16, W/16).
    """

    middle: Tensor
    deep: Tensor
    last: Tensor

    def named(self, source: PartSource) -> Tensor:
        """Return the map of that name."""
        return {"last": self.last, "deep": self.deep, "middle": self.middle}[source]


class Backbone(nn.Module):
    """Four successive stages; the body attention sits between the first and the others.

    Args:
        early: Images (B, 3, H, W) -> (B, early_channels, H/4, W/4).
        middle: -> (B, middle_channels, H/8, W/8).
        deep: -> (B, deep_channels, H/16, W/16).
        last: -> (B, late_channels, H/16, W/16).
        info: Their channels.
    """

    def __init__(
        self, early: nn.Module, middle: nn.Module, deep: nn.Module, last: nn.Module, info: BackboneInfo
    ) -> None:
        super().__init__()
        self.early = early
        self.middle = middle
        self.deep = deep
        self.last = last
        self.info = info

    def rest(self, early: Tensor) -> FeatureMaps:
        """Return the maps after the early stage from its features."""
        middle = self.middle(early)
        deep = self.deep(middle)
        return FeatureMaps(middle, deep, self.last(deep))

    def forward(self, images: Tensor) -> FeatureMaps:
        """Return all maps after the early stage from images (B, 3, H, W)."""
        return self.rest(self.early(images))


IBN_SUFFIX = "_ibn_a"


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance normalisation of the first half of the channels, batch normalisation of the others.

    Published state dicts (Pan et al., "Two at Once", ECCV 2018) name its two layers `IN` and `BN`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.instance_channels = channels // 2
        self.IN = nn.InstanceNorm2d(self.instance_channels, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.instance_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        first, second = features.tensor_split([self.instance_channels], 1)
        return torch.cat([self.IN(first.contiguous()), self.BN(second.contiguous())], 1)


def insert_instance_norms(network: nn.Module) -> None:
    """Turn a ResNet of torchvision into its IBN-a variant: the first normalisation of each block of layers 1 to 3."""
    for layer in ("layer1", "layer2", "layer3"):
        for block in network.get_submodule(layer).children():
            norm = block.bn1
            assert isinstance(norm, nn.BatchNorm2d)
            block.bn1 = InstanceBatchNorm(norm.num_features)


class NonLocal(nn.Module):
    """A non-local block, embedded Gaussian (Wang et al., CVPR 2018): x + BN(W softmax(theta(x) phi(x)^T) g(x)).

    The scale of its last BN starts at zero, so that the network computes what it did without it.

    Args:
        channels: C; the embeddings have C / 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, hidden, 1) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.out = nn.Sequential(nn.Conv2d(hidden, channels, 1), norm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        theta, phi, g = (layer(features).flatten(2) for layer in (self.theta, self.phi, self.g))
        attention = torch.softmax(theta.mT @ phi, 2)
        found: Tensor = self.out((g @ attention.mT).unflatten(2, features.shape[2:]))
        return features + found


def insert_non_local(network: nn.Module) -> None:
    """Append a non-local block to the last two blocks of a ResNet's layer 2 and the last three of layer 3, as in AGW.

    Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021.
    """
    for name, count in (("layer2", 2), ("layer3", 3)):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Sequential)
        for place in range(max(len(layer) - count, 0), len(layer)):
            layer[place] = nn.Sequential(layer[place], NonLocal(_out_channels(layer[place])))


def build_backbone(name: str, weights: Mapping[str, Tensor] | None = None, *, non_local: bool = False) -> Backbone:
    """Build a backbone whose last stage has stride 1, so that 256x128 images give 16x8 features (paper, Sec. 3).

    Args:
        name: One of `BACKBONES`, or `timm:NAME`.
        weights: State dict of the classification network of that name, as torchvision (or timm) keys it; the
            classifier's entries may be absent and are ignored. None: random initial weights.
        non_local: Add non-local blocks, in a ResNet.

    Raises:
        ConfigError: Unknown backbone.
        WeightsError: The weights do not fit it.
    """
    if name.startswith("timm:"):
        from pipeline.model.timm_backbone import build_timm

        return build_timm(name.removeprefix("timm:"), weights)
    if name not in BACKBONES:
        raise ConfigError(
            f"unknown backbone {name!r}",
            where="model.backbone",
            expected=" | ".join([*BACKBONES, "timm:NAME"]),
            hint=suggestion(name, BACKBONES),
        )
    network = torchvision.models.get_model(name.removesuffix(IBN_SUFFIX), weights=None)
    if name.endswith(IBN_SUFFIX):
        insert_instance_norms(network)
    if weights is not None:
        load_weights(network, weights, name)
    if non_local:
        insert_non_local(network)
    return _mobilenet(network) if name == "mobilenet_v2" else _resnet(network)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Fill a classification network with a state dict; classifiers are ignored.

    Raises:
        WeightsError: An entry is missing, has another shape or belongs to a deeper network, or the file holds several
            networks.
    """
    own = network.state_dict()
    needed = {key for key in own if not key.startswith(("fc.", "classifier."))}
    weights = _without_prefix(weights, {key: own[key] for key in sorted(needed)})
    # BatchNorm's counters are missing from files of old PyTorch versions and play no part in the result.
    missing = sorted(key for key in needed - set(weights) if not key.endswith("num_batches_tracked"))
    wrong = sorted(key for key in needed & set(weights) if own[key].shape != weights[key].shape)
    # A deeper network of the same family has all entries of a shallower one, and more.
    stages = {key.partition(".")[0] for key in needed}
    extra = sorted(key for key in weights.keys() - own.keys() if key.partition(".")[0] in stages)
    if missing or wrong or extra:
        first = (missing or wrong or extra)[0]
        ours = any(key.startswith("backbone.early.") for key in weights)
        shape = f"has shape {tuple(weights[first].shape)}" if first in wrong else "is not part of it"
        raise WeightsError(
            f"these weights are not those of {name}: {first!r} {'is missing' if missing else shape}",
            expected=(f"{tuple(own[first].shape)} for {first!r}, and " if first in own else "")
            + f"{len(needed)} entries as its package names them",
            hint="it is a checkpoint of this program: set train.start to it instead of model.weights"
            if ours
            else f"the file has {', '.join(sorted(weights)[:3])}, ...; name its own network as model.backbone",
        )
    network.load_state_dict({key: weights[key] for key in needed if key in weights}, strict=False)


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefix of a larger model from the names of entries, where those of the network follow it.

    Re-identification and self-supervised trainers save `backbone.`, `base.` or `encoder_q.` before each name.
    """
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    found = sorted(name.removesuffix(counted[0]) for name in weights if name.endswith(counted[0]))
    fitting = [
        prefix
        for prefix in found
        if all(prefix + key in weights and weights[prefix + key].shape == own[key].shape for key in counted)
    ]
    return strip_prefix(weights, choose_prefix(fitting)) if fitting else weights


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def choose_prefix(prefixes: Sequence[str]) -> str:
    """Return the prefix of the network to load: the empty one, the only one, or that of the trained encoder.

    Raises:
        WeightsError: There are several, and none is known for the trained one.
    """
    if "" in prefixes:
        return ""
    # MoCo saves two encoders; only the trained one is the result.
    known = [prefix for prefix in prefixes if prefix.endswith(_TRAINED)]
    if len(prefixes) > 1 and len(known) != 1:
        raise WeightsError(
            f"the file holds several networks of this kind: {', '.join(prefixes)}",
            hint="save the entries of one of them as a file",
        )
    return (known or prefixes)[0]


def _resnet(network: nn.Module) -> Backbone:
    last = network.get_submodule("layer4")
    for module in last.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
    early = nn.Sequential(*(network.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool", "layer1")))
    return _backbone(early, network.get_submodule("layer2"), network.get_submodule("layer3"), last)


def _mobilenet(network: nn.Module) -> Backbone:
    features = network.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    strided = [module for module in features.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    # Strides 2, 4, 8, 16, 32: the fifth is given up for a 16x8 map.
    strided[-1].stride = (1, 1)
    first, second, third = _MOBILENET_CUTS
    return _backbone(features[:first], features[first:second], features[second:third], features[third:])


def _backbone(early: nn.Module, middle: nn.Module, deep: nn.Module, last: nn.Module) -> Backbone:
    channels = [_out_channels(stage) for stage in (early, middle, deep, last)]
    return Backbone(early, middle, deep, last, BackboneInfo(*channels))


def _out_channels(module: nn.Module) -> int:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


_TRAINED = ("encoder_q.", "base_encoder.")
"""Prefixes of the encoder that MoCo trains; the other one is its moving average."""


def initialise(module: nn.Module) -> None:
    """Kaiming weights for convolutions and linear layers, identity for normalisation, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode="fan_out" if isinstance(part, nn.Conv2d) else "fan_in")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)

"""Networks of timm as backbones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.model.backbone import Backbone, BackboneInfo, load_weights
from pipeline.model.timm_transformer import EXPECTED, build_transformer, create_network


class _Stage(nn.Module):
    """Some successive children of a timm feature extractor, as a module of its own."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: network.get_submodule(name) for name in names})

    def forward(self, features: Tensor) -> Tensor:
        for part in self.parts.values():
            features = part(features)
        return features


def build_timm(name: str, weights: Mapping[str, Tensor] | None) -> Backbone:
    """Build a backbone from a transformer, or from one of timm's feature extractors with output stride 16.

    Args:
        name: timm's name of the network.
        weights: State dict as timm keys it, or None.

    Raises:
        ConfigError: timm is not installed, or the network has no successive stages at strides 4, 8 and 16.
        WeightsError: The weights belong to another network.
    """
    try:
        import timm  # noqa: F401 - tells an absent package from one that fails
    except ImportError:
        raise ConfigError(
            f"backbone timm:{name} needs the package timm", where="model.backbone", hint="pip install 'sgsfa[timm]'"
        ) from None
    if (transformer := build_transformer(name, weights)) is not None:
        return transformer
    network = create_network(name, features_only=True, output_stride=16)
    info: Any = network.feature_info
    reductions = list(info.reduction())
    if not {4, 8} <= set(reductions) or reductions[-1] != 16 or not isinstance(network, nn.ModuleDict):
        raise ConfigError(
            f"timm's {name!r} has features at strides {reductions}", where="model.backbone", expected=EXPECTED
        )
    if weights is not None:
        load_weights(network, _flattened(weights, list(network.keys())), f"timm:{name}")
    names, channels = list(network.keys()), info.channels()
    levels = _levels(reductions)
    cuts = [0, *(_cut_after(name, info[level]["module"], names) for level in levels)]
    early, middle, deep, last = (_Stage(network, names[begin:end]) for begin, end in itertools.pairwise(cuts))
    return Backbone(early, middle, deep, last, BackboneInfo(*(int(channels[level]) for level in levels)))


def _levels(reductions: Sequence[int]) -> tuple[int, int, int, int]:
    """Places of the last features at strides 4 and 8, of the last but one at stride 16 (or 8), and of the last."""
    behind = {reduction: level for level, reduction in enumerate(reductions)}
    last = len(reductions) - 1
    return behind[4], min(behind.get(8, behind[4]), last - 1), last - 1, last


def _cut_after(name: str, module: str, children: Sequence[str]) -> int:
    """How many of an extractor's children make the features of a module.

    Raises:
        ConfigError: It is none of them.
    """
    # Where a network's stages lie within another module, timm names the flattened ones by an underscore.
    found = next((each for each in (module.replace(".", "_"), module.split(".")[0]) if each in children), None)
    if found is None:
        raise ConfigError(
            f"timm's {name!r} cannot be cut after its stage {module!r}", where="model.backbone", expected=EXPECTED
        )
    return children.index(found) + 1


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

"""The network that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.model.backbone import build_backbone
from pipeline.model.baseline import Baseline
from pipeline.model.sgsfa import SGSFA

Network = SGSFA | Baseline


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    backbone_weights: Mapping[str, Tensor] | None = None,
    supervised_parts: Tensor | None = None,
) -> Network:
    """Build the network that a configuration asks for.

    Args:
        config: Shape and choices.
        num_classes: Number of training identities K.
        backbone_weights: Where the backbone starts (`load_backbone_weights`); None: random.
        supervised_parts: (4,) bool, the parts that the training masks supervise; None: all.

    Raises:
        ConfigError: Unknown backbone.
        WeightsError: The weights belong to another network.
    """
    backbone = build_backbone(config.backbone, backbone_weights, non_local=config.non_local)
    if config.kind == "baseline":
        return Baseline(config, num_classes, backbone)
    network = SGSFA(config, num_classes, backbone)
    if supervised_parts is not None:
        network.trained_parts.copy_(supervised_parts)
    return network

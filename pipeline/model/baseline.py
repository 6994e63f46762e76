"""The global-feature baseline: the same backbone without parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model import spatial
from pipeline.model.backbone import Backbone, initialise
from pipeline.model.heads import GlobalPooling, Head
from pipeline.model.output import IdentityLogits, NetworkOutput
from pipeline.parts import NUM_PARTS, SEMANTIC


class Baseline(nn.Module):
    """The global-feature baseline: the same backbone, one global feature, a BNNeck.

    It returns the same `NetworkOutput` with parts that are never visible, so that matching falls back on the global
    feature and everything after training serves both.

    Args:
        config: Its shape; `global_dim` 0 keeps the backbone's own channels.
        classes: Number of training identities.
        backbone: Features at strides 4 and 16.
    """

    def __init__(self, config: ModelConfig, classes: int, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        channels = backbone.info.late_channels
        dim = config.global_dim or channels
        self.pool = GlobalPooling(config.global_pooling)
        self.project: nn.Module = nn.Linear(channels, dim, bias=False) if config.global_dim else nn.Identity()
        initialise(self.project)
        self.head = Head(dim, classes, config.logit_scale)

    def forward(self, images: Tensor) -> NetworkOutput:
        """Embed (B, 3, H, W) normalised images."""
        global_feature = self.project(self.pool(self.backbone(images).last))
        after, identity = self.head(global_feature)
        batch, zeros = images.shape[0], global_feature.new_zeros
        absent = torch.zeros((batch, len(spatial.COMBINATIONS)), dtype=torch.bool, device=global_feature.device)
        return NetworkOutput(
            body_mask_logits=None,
            part_mask_logits=None,
            semantic=zeros((batch, len(SEMANTIC), 1)),
            spatial=zeros((batch, len(spatial.COMBINATIONS), 1)),
            spatial_present=absent,
            global_feature=global_feature,
            visibility=zeros((batch, NUM_PARTS)),
            matched=zeros((batch, NUM_PARTS, 1)),
            matched_global=after,
            logits=IdentityLogits(None, None, identity) if self.training else None,
        )

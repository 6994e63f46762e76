"""SGSFA: from normalised images to part features, masks and visibilities (docs/concepts/method.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model import spatial
from pipeline.model.attention import (
    BodyAttention,
    FineLocalAttention,
    LocalAttention,
    PartEmbeddings,
    averaged_to,
    masked_mean,
)
from pipeline.model.backbone import Backbone, FeatureMaps, initialise
from pipeline.model.heads import GlobalPooling, Head
from pipeline.model.output import IdentityLogits, NetworkOutput
from pipeline.model.visibility import visible_semantic
from pipeline.parts import NUM_PARTS, SEMANTIC, SPATIAL

CENTRES = frozenset({"part_centres", "global_centre"})
"""Buffers of `SGSFA` that calibration sets; a network has those whose features have no neck."""


class SGSFA(nn.Module):
    """The network of the paper.

    Its buffer `trained_parts` (4,) is 0 for a part that the training masks did not supervise: its feature is zero, it
    is never visible, and no strip is found by it.

    Where features have no neck, they are means of ReLUs: all positive, with much in common, so that the cosine distance
    of any two heads is some 0.05, that of any two strips 0.25, and a pair that shares no strip looks close. Its buffers
    `part_centres` (7, D) and `global_centre` (W,), the means over training images that `calibrate` sets, are
    subtracted from what matching compares; a neck does the same.

    Args:
        config: Its shape and its choices.
        classes: Number of training identities.
        backbone: Features at strides 4, 8 and 16.
    """

    trained_parts: Tensor
    part_centres: Tensor | None
    global_centre: Tensor | None

    def __init__(self, config: ModelConfig, classes: int, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        info = backbone.info
        late, dim = info.late_channels, config.part_dim
        self.backbone = backbone
        self.body_attention = (
            BodyAttention(info.early_channels, config.body_reduction) if config.body_attention else None
        )
        self.local_attention: LocalAttention | FineLocalAttention = (
            FineLocalAttention(info.middle_channels, late)
            if config.fine_masks
            else LocalAttention(late, config.local_reduction)
        )
        # Four semantic parts and, last, the unmasked features that the strips divide.
        self.embeddings = PartEmbeddings(info.channels_of(config.part_features), dim, len(SEMANTIC) + 1)
        self.spatial_heads = nn.ModuleList(self._head(dim, classes) for _ in spatial.COMBINATIONS)
        self.semantic_heads = nn.ModuleList(self._head(dim, classes) for _ in SEMANTIC) if config.necks else None
        self.pool = GlobalPooling(config.global_pooling)
        self.global_project = nn.Linear(late, config.global_dim, bias=False) if config.global_dim else None
        self.global_head = self._head(config.global_dim, classes) if config.global_dim else None
        self.foreground_project = nn.Linear(late, config.foreground_dim, bias=False) if config.foreground_dim else None
        self.foreground_head = self._head(config.foreground_dim, classes) if config.foreground_dim else None
        self.concatenated_head = self._head(NUM_PARTS * dim, classes) if config.concatenated else None
        self.register_buffer("trained_parts", torch.ones(len(SEMANTIC)))
        self.register_buffer("part_centres", None if config.necks else torch.zeros(NUM_PARTS, dim))
        self.register_buffer("global_centre", None if config.global_dim else torch.zeros(late))
        self._initialise()

    def _head(self, dim: int, classes: int) -> Head:
        return Head(dim, classes, self.config.logit_scale)

    def _initialise(self) -> None:
        for name, module in self.named_children():
            if name != "backbone":
                initialise(module)
        for part in self.modules():
            if isinstance(part, Head):
                nn.init.normal_(part.classify.weight, std=0.001)
        # Masks start near one half everywhere: saturated ones would gate the backbone before they know anything.
        nn.init.normal_(self.local_attention.heads.weight, std=0.01)
        if self.body_attention is not None:
            nn.init.normal_(self.body_attention.mask.weight, std=0.01 / self.body_attention.scale)

    def forward(self, images: Tensor) -> NetworkOutput:
        """Embed a batch of (B, 3, H, W) normalised images (`normalise`)."""
        maps, body_mask_logits, part_mask_logits = self.predict(images)
        masks = torch.sigmoid(part_mask_logits)

        # Rows, strips and visibilities are decisions about the masks, not functions to learn through.
        decided = masks.detach().float() * self.trained_parts[None, :, None, None]
        strips, strip_shown, strip_mean = spatial.find_strips(decided, self.config, testing=not self.training)
        present = spatial.choose_features(strip_shown)
        # Not by the largest value: a shoe fills a tenth of a cell, and its neck has to see it all the same.
        shown = visible_semantic(decided)

        semantic, pooled = self._part_features(maps, masks, decided, strips)
        matched_semantic, semantic_logits = self._semantic(semantic, shown)
        matched_strips, spatial_logits = self._spatial(pooled, present, strips.any(2))
        global_feature, matched_global, global_logits, foreground_logits = self._global(maps.last, decided)
        concatenated_logits: Tensor | None = None
        if self.concatenated_head is not None:
            parts = torch.cat([semantic, pooled[:, : len(SPATIAL)]], 1)
            concatenated_logits = self.concatenated_head(parts.flatten(1))[1]
        logits = IdentityLogits(spatial_logits, semantic_logits, global_logits, foreground_logits, concatenated_logits)
        return NetworkOutput(
            body_mask_logits=body_mask_logits,
            part_mask_logits=part_mask_logits,
            semantic=semantic,
            spatial=pooled,
            spatial_present=present,
            global_feature=global_feature,
            visibility=torch.cat([decided.mean((2, 3)), strip_mean], 1),
            matched=torch.cat([matched_semantic, matched_strips.to(matched_semantic.dtype)], 1),
            matched_global=matched_global,
            logits=logits if self.training else None,
        )

    def predict(self, images: Tensor) -> tuple[FeatureMaps, Tensor | None, Tensor]:
        """Return the feature maps and the logits of body and part masks (`NetworkOutput`), without features."""
        early = self.backbone.early(images)
        body_mask_logits: Tensor | None = None
        if self.body_attention is not None:
            early, body_mask_logits = self.body_attention(early)
        maps = self.backbone.rest(early)
        return maps, body_mask_logits, self.local_attention(maps)

    def _part_features(
        self, maps: FeatureMaps, masks: Tensor, decided: Tensor, strips: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features of the semantic parts (B, 4, D) and of the strips and their combinations (B, 5, D)."""
        source = maps.named(self.config.part_features)
        size = source.shape[2:]
        gate = averaged_to(masks.detach() if self.config.detach_masks else masks, size)
        projected = self.embeddings(source, torch.cat([gate, torch.ones_like(gate[:, :1])], 1))
        parts, unmasked = projected[:, :-1], projected[:, -1]
        semantic = masked_mean(parts, gate) if self.config.pooling == "masked" else parts.mean((3, 4))
        body = averaged_to(decided, size).amax(1) if self.config.strip_pooling == "body" else None
        pooled = spatial.pool_strips(unmasked, spatial.strips_to(strips, size[0]), body)
        return semantic * self.trained_parts[None, :, None].to(semantic.dtype), pooled

    def _semantic(self, semantic: Tensor, shown: Tensor) -> tuple[Tensor, Tensor | None]:
        """What matching compares of the semantic parts (B, 4, D), and their logits where they have necks."""
        trained = self.trained_parts[None, :, None].to(semantic.dtype)
        if self.semantic_heads is None:
            assert self.part_centres is not None
            return (semantic - self.part_centres[: len(SEMANTIC)]) * trained, None
        found = [head(semantic[:, i], shown[:, i]) for i, head in enumerate(self.semantic_heads)]
        matched = torch.stack([after for after, _ in found], 1)
        return matched * trained.to(matched.dtype), torch.stack([logits for _, logits in found], 1)

    def _spatial(self, pooled: Tensor, present: Tensor, non_empty: Tensor) -> tuple[Tensor, Tensor]:
        """What matching compares of the strips (B, 3, D), and the logits of all spatial features."""
        found = [head(pooled[:, i], present[:, i]) for i, head in enumerate(self.spatial_heads)]
        strips = len(SPATIAL)
        if self.part_centres is not None:
            matched = pooled[:, :strips] - self.part_centres[len(SEMANTIC) :]
        else:
            matched = torch.stack([after for after, _ in found[:strips]], 1)
        # The neck turns the zeros of an empty strip into a constant, which would match that of every other image.
        matched = matched * non_empty.unsqueeze(2).to(matched.dtype)
        return matched, torch.stack([logits for _, logits in found], 1)

    def _global(self, features: Tensor, decided: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The global feature, what matching compares of it, and the logits of it and of the foreground."""
        global_feature = self.pool(features)
        if self.global_project is None or self.global_head is None:
            assert self.global_centre is not None
            return global_feature, global_feature - self.global_centre, None, None
        global_feature = self.global_project(global_feature)
        matched, logits = self.global_head(global_feature)
        if self.foreground_project is None or self.foreground_head is None:
            return global_feature, matched, logits, None
        body = averaged_to(decided, features.shape[2:]).amax(1, keepdim=True)
        pooled = masked_mean(features.unsqueeze(1), body)[:, 0]
        matched_foreground, foreground_logits = self.foreground_head(self.foreground_project(pooled))
        return global_feature, torch.cat([matched, matched_foreground], 1), logits, foreground_logits

    def set_centres(self, parts: Tensor, global_feature: Tensor) -> None:
        """Take these means, (7, D) and (W,), for the centres of what matching compares, where it has no necks."""
        if self.part_centres is not None:
            self.part_centres.copy_(parts)
        if self.global_centre is not None:
            self.global_centre.copy_(global_feature)

    def reset_centres(self) -> None:
        """Reset the centres to zero, so that the means of the features can be measured."""
        for centre in (self.part_centres, self.global_centre):
            if centre is not None:
                centre.zero_()

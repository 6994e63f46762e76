"""SGSFA and its rival: from normalised images to part features, masks and visibilities (docs/concepts/method.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.model import spatial
from pipeline.model.attention import (
    LOCAL_PARTS,
    VISIBLE_SHARES,
    BodyAttention,
    LocalAttention,
    PartEmbeddings,
    masked_mean,
)
from pipeline.model.backbone import REFERENCE_LENGTH, Backbone, build_backbone, classifier, initialise
from pipeline.parts import NUM_PARTS


@dataclass(frozen=True, slots=True)
class PartLogits:
    """Identity logits, made in training only. K is the number of training identities.

    Attributes:
        spatial: (B, 5, K), in the order of `spatial.COMBINATIONS`; None in the baseline.
        semantic: (B, 4, K), where the model has necks.
        global_feature: (B, K), where the model has a trained global feature.
    """

    spatial: Tensor | None
    semantic: Tensor | None
    global_feature: Tensor | None


@dataclass(frozen=True, slots=True)
class Output:
    """What the network says of a batch of B images.

    Attributes:
        body_mask_logits: (B, 1, H/4, W/4), or None without body attention.
        part_mask_logits: (B, 4, H/16, W/16) for head, upper, lower, shoes; None in the baseline.
        semantic: (B, 4, D) before any neck; the triplet loss works on these.
        spatial: (B, 5, D) before the neck, top, middle, bottom, top+middle, middle+bottom.
        spatial_present: (B, 5) bool, the choice of eq. 3.
        global_feature: (B, W) global feature before its neck.
        visibility: (B, 7) mask means in [0, 1] (eq. 4) in the order of matching: four semantic, three spatial.
        matched: (B, 7, D) features that matching compares: after their necks where `model.necks` is on, else before
            them and centred; an empty strip is zero.
        matched_global: (B, W) global feature that matching compares: after its neck, or centred.
        logits: Identity logits in training mode, else None.
    """

    body_mask_logits: Tensor | None
    part_mask_logits: Tensor | None
    semantic: Tensor
    spatial: Tensor
    spatial_present: Tensor
    global_feature: Tensor
    visibility: Tensor
    matched: Tensor
    matched_global: Tensor
    logits: PartLogits | None

    def parts(self) -> Tensor:
        """(B, 7, D) features for matching, in the order head, upper, lower, shoes, top, middle, bottom."""
        return self.matched


_LEAST_ROWS = 4


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation whose statistics leave out the rows that are absent.

    Absent spatial features (eq. 3) are zero vectors; counted in, they would shift the statistics of those that
    are there. Selecting rows would make shapes depend on data and stall a GPU, so rows are weighted instead.
    """

    def forward(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Normalise (B, D) features; `present` (B,) bool tells which rows count in training."""
        if present is None or not self.training:
            return super().forward(features)
        assert self.running_mean is not None
        assert self.running_var is not None
        weight = present.to(torch.float32).unsqueeze(1)
        count = weight.sum()
        values = features.float()
        mean = (values * weight).sum(0) / count.clamp_min(1.0)
        variance = ((values - mean).square() * weight).sum(0) / count.clamp_min(1.0)
        # A few rows have no variance worth normalising by; the running one serves.
        enough = count >= min(_LEAST_ROWS, features.shape[0])
        mean = torch.where(enough, mean, self.running_mean)
        variance = torch.where(enough, variance, self.running_var)
        if self.track_running_stats:
            # Half the rows move the running statistics half as far.
            momentum = torch.where(enough, float(self.momentum or 0.0) * count / features.shape[0], 0.0)
            unbiased = variance.detach() * (count / (count - 1).clamp_min(1.0))
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(unbiased, momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        normal = (values - mean) * torch.rsqrt(variance + self.eps)
        return (normal * self.weight + self.bias).to(features.dtype)


class Head(nn.Module):
    """A BNNeck and an identity classifier without bias (paper, Sec. 4.2; Luo et al., 2019).

    A step of Adam moves every weight by the learning rate, so logits over D features of unit variance move D times as
    far: a part of length 256 would learn its identities eight times as slowly as a feature of 2,048. The logits are
    scaled by 2,048 / D, so that all learn at the same pace (Yang et al., "Tensor Programs V", 2021).

    Args:
        length: Length of the feature.
        classes: Number of training identities.
    """

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.neck = MaskedBatchNorm1d(length)
        # A neck without shift keeps the features around the origin, where cosine distances make sense.
        self.neck.bias.requires_grad_(False)
        self.classify = classifier(length, classes)
        self.scale = REFERENCE_LENGTH / length

    def forward(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, D) -> features after the neck (B, D) and logits (B, K)."""
        after = self.neck(features, present)
        return after, self.classify(after) * self.scale


CENTRES = frozenset({"part_centres", "global_centre"})
"""Buffers of `SGSFA` that calibration fills; a network has those whose features have no neck."""


class SGSFA(nn.Module):
    """The network of the paper.

    Its buffer `trained_parts` (4,) is 0 for a part that the training masks do not label: its feature is zero, it is
    never visible, and no strip is found by it.

    Where features have no neck, they are means of ReLUs: all positive, with much in common, so that the cosine distance
    of any two heads is some 0.05, that of any two strips 0.25, and a pair that shares no strip looks close. Its buffers
    `part_centres` (7, D) and `global_centre` (W,), the means over training images that `calibrate` sets, are
    subtracted from what matching compares; a neck does the same.

    Args:
        config: Its shape and its choices.
        classes: Number of training identities.
        backbone: Features at strides 4 and 16.
    """

    trained_parts: Tensor
    visible_shares: Tensor
    part_centres: Tensor | None
    global_centre: Tensor | None

    def __init__(self, config: ModelConfig, classes: int, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        info = backbone.info
        self.backbone = backbone
        self.body_attention = (
            BodyAttention(info.early_channels, config.body_reduction) if config.body_attention else None
        )
        self.local_attention = LocalAttention(info.late_channels, config.local_reduction)
        # Four semantic parts and, last, the unmasked features that the strips divide.
        self.embeddings = PartEmbeddings(info.late_channels, config.part_dim, len(LOCAL_PARTS) + 1)
        self.spatial_heads = nn.ModuleList(Head(config.part_dim, classes) for _ in spatial.COMBINATIONS)
        self.semantic_heads = (
            nn.ModuleList(Head(config.part_dim, classes) for _ in LOCAL_PARTS) if config.necks else None
        )
        self.global_project: nn.Module | None = None
        self.global_head: Head | None = None
        if config.global_dim:
            self.global_project = nn.Linear(info.late_channels, config.global_dim, bias=False)
            self.global_head = Head(config.global_dim, classes)
        # Which parts the training masks told of. What a parser cannot give was never taught, so it never counts.
        self.register_buffer("trained_parts", torch.ones(len(LOCAL_PARTS)))
        bare_global = None if config.global_dim else torch.zeros(info.late_channels)
        self.register_buffer("part_centres", None if config.necks else torch.zeros(NUM_PARTS, config.part_dim))
        self.register_buffer("global_centre", bare_global)
        self.register_buffer("visible_shares", torch.tensor(VISIBLE_SHARES), persistent=False)
        for name, module in self.named_children():
            if name != "backbone":
                initialise(module)
        for part in self.modules():
            if isinstance(part, Head):
                nn.init.normal_(part.classify.weight, std=0.001)
        # Masks start near one half everywhere: saturated ones would gate the backbone before they know anything.
        nn.init.normal_(self.local_attention.heads.weight, std=0.01)
        if self.body_attention is not None:
            self.body_attention.start_flat()

    def forward(self, images: Tensor) -> Output:
        """Look at a batch.

        Args:
            images: (B, 3, H, W) normalised images (`normalise`).
        """
        early = self.backbone.early(images)
        body_mask_logits: Tensor | None = None
        if self.body_attention is not None:
            early, body_mask_logits = self.body_attention(early)
        features: Tensor = self.backbone.late(early)

        part_logits = self.local_attention(features)
        masks = torch.sigmoid(part_logits)
        projected = self.embeddings(features, torch.cat([masks, torch.ones_like(masks[:, :1])], 1))
        parts, unmasked = projected[:, :-1], projected[:, -1]
        semantic = masked_mean(parts, masks) if self.config.pooling == "masked" else parts.mean((3, 4))
        given = self.trained_parts[None, :, None]
        semantic = semantic * given.to(semantic.dtype)

        # Rows, strips and visibilities are decisions about the masks, not functions to learn through.
        seen = masks.detach().float() * given.unsqueeze(3)
        strips, strip_shown = spatial.find_strips(seen, self.config, testing=not self.training)
        present = spatial.choose_features(strip_shown)
        # Not by the largest value: a shoe fills a tenth of a cell, and its neck has to see it all the same.
        shown = seen.mean((2, 3)) > self.visible_shares
        body = seen.amax(1) if self.config.strip_pooling == "body" else None
        pooled = spatial.pool_strips(unmasked, strips, body)
        strip_mean, _ = spatial.strip_visibility(seen, strips)
        visibility = torch.cat([seen.mean((2, 3)), strip_mean], 1)

        global_feature = features.mean((2, 3))
        if self.global_project is not None:
            global_feature = self.global_project(global_feature)
        return self._classify(
            semantic, shown, pooled, strips, present, global_feature, visibility, body_mask_logits, part_logits
        )

    def centre(self, parts: Tensor, global_feature: Tensor) -> None:
        """Take these means, (7, D) and (W,), for the centres of what matching compares, where it has no necks."""
        if self.part_centres is not None:
            self.part_centres.copy_(parts)
        if self.global_centre is not None:
            self.global_centre.copy_(global_feature)

    def uncentre(self) -> None:
        """Compare features as they are, to measure their means."""
        for centre in (self.part_centres, self.global_centre):
            if centre is not None:
                centre.zero_()

    def _classify(
        self,
        semantic: Tensor,
        shown: Tensor,
        pooled: Tensor,
        strip_rows: Tensor,
        present: Tensor,
        global_feature: Tensor,
        visibility: Tensor,
        body_mask_logits: Tensor | None,
        part_logits: Tensor,
    ) -> Output:
        spatial_out = [head(pooled[:, i], present[:, i]) for i, head in enumerate(self.spatial_heads)]
        matched_semantic, semantic_logits = semantic, None
        matched_strips = pooled[:, : len(spatial.STRIPS)]
        if self.semantic_heads is not None:
            semantic_out = [head(semantic[:, i], shown[:, i]) for i, head in enumerate(self.semantic_heads)]
            matched_semantic = torch.stack([after for after, _ in semantic_out], 1)
            matched_semantic = matched_semantic * self.trained_parts[None, :, None].to(matched_semantic.dtype)
            semantic_logits = torch.stack([logits for _, logits in semantic_out], 1)
            matched_strips = torch.stack([after for after, _ in spatial_out[: len(spatial.STRIPS)]], 1)
        if self.part_centres is not None:
            centred = matched_semantic - self.part_centres[: len(LOCAL_PARTS)]
            matched_semantic = centred * self.trained_parts[None, :, None]
            matched_strips = matched_strips - self.part_centres[len(LOCAL_PARTS) :]
        matched_global, identity = (
            global_feature if self.global_centre is None else global_feature - self.global_centre,
            None,
        )
        if self.global_head is not None:
            matched_global, identity = self.global_head(global_feature)
        # The neck turns the zeros of an empty strip into a constant, which would match that of every other image.
        there = strip_rows.any(2).unsqueeze(2).to(matched_strips.dtype)
        strips = matched_strips * there
        logits = None
        if self.training:
            logits = PartLogits(torch.stack([each for _, each in spatial_out], 1), semantic_logits, identity)
        return Output(
            body_mask_logits=body_mask_logits,
            part_mask_logits=part_logits,
            semantic=semantic,
            spatial=pooled,
            spatial_present=present,
            global_feature=global_feature,
            visibility=visibility,
            matched=torch.cat([matched_semantic, strips.to(matched_semantic.dtype)], 1),
            matched_global=matched_global,
            logits=logits,
        )


class Baseline(nn.Module):
    """The honest rival: the same backbone, one global feature, a BNNeck.

    It fills the same `Output` with parts that are never visible, so that matching falls back on the whole-body
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
        length = config.global_dim or backbone.info.late_channels
        self.project: nn.Module = (
            nn.Linear(backbone.info.late_channels, length, bias=False) if config.global_dim else nn.Identity()
        )
        initialise(self.project)
        self.head = Head(length, classes)

    def forward(self, images: Tensor) -> Output:
        """Look at a batch of (B, 3, H, W) normalised images."""
        features = self.backbone.late(self.backbone.early(images))
        global_feature = self.project(features.mean((2, 3)))
        after, identity = self.head(global_feature)
        batch = images.shape[0]
        nothing = global_feature.new_zeros
        return Output(
            body_mask_logits=None,
            part_mask_logits=None,
            semantic=nothing((batch, len(LOCAL_PARTS), 1)),
            spatial=nothing((batch, len(spatial.COMBINATIONS), 1)),
            spatial_present=torch.zeros(
                (batch, len(spatial.COMBINATIONS)), dtype=torch.bool, device=global_feature.device
            ),
            global_feature=global_feature,
            visibility=nothing((batch, len(LOCAL_PARTS) + len(spatial.STRIPS))),
            matched=nothing((batch, len(LOCAL_PARTS) + len(spatial.STRIPS), 1)),
            matched_global=after,
            logits=PartLogits(None, None, identity) if self.training else None,
        )


Network = SGSFA | Baseline


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    backbone_weights: Mapping[str, Tensor] | None = None,
    given: Tensor | None = None,
) -> Network:
    """Build the network that a configuration asks for.

    Args:
        config: Shape and choices.
        num_classes: Number of training identities K.
        backbone_weights: Where the backbone starts (`load_backbone_weights`); None: random.
        given: (4,) bool, which parts the training masks can tell of; None: all.

    Raises:
        ConfigError: There is no such backbone.
        WeightsError: The weights are another network's.
    """
    backbone = build_backbone(config.backbone, backbone_weights)
    if config.kind == "baseline":
        return Baseline(config, num_classes, backbone)
    network = SGSFA(config, num_classes, backbone)
    if given is not None:
        network.trained_parts.copy_(given)
    return network

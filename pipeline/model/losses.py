"""The losses (paper, Sec. 3.4; docs/concepts/method.md).

L = balance (L_tri + L_se) + (1 - balance) L_d_cls (eq. 11), plus the global feature's own losses where the
model has one. Everything is finite for every batch: without masks L_se is zero, without a chosen feature L_d_cls
is zero, without a valid triplet L_tri is zero; each keeps its graph, so that distributed training never waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import LossConfig
from pipeline.model.mask_targets import MaskTargets, resized
from pipeline.model.output import NetworkOutput
from pipeline.model.visibility import visible_semantic

LOSS_NAMES = ("loss", "triplet", "masks", "identity", "global_feature")


@dataclass(frozen=True, slots=True)
class LossParts:
    """The total to minimise and its terms, each a scalar tensor.

    Attributes:
        total: Eq. 11 and the global feature's losses.
        triplet: L_tri.
        masks: L_se (eq. 9).
        identity: L_d_cls.
        global_feature: The global feature's own identity and triplet loss, already weighted.
    """

    total: Tensor
    triplet: Tensor
    masks: Tensor
    identity: Tensor
    global_feature: Tensor

    def stacked(self) -> Tensor:
        """Return the terms in the order of `LOSS_NAMES`, detached, for logs: (5,) float32."""
        terms = (self.total, self.triplet, self.masks, self.identity, self.global_feature)
        return torch.stack([term.detach().float() for term in terms])


def total_loss(
    output: NetworkOutput, pids: Tensor, targets: MaskTargets, config: LossConfig, *, triplets: bool = True
) -> LossParts:
    """Return the loss of a batch.

    Args:
        output: The network's output in training mode.
        pids: (B,) int64 class index of each image.
        targets: Augmented masks of the batch.
        config: Weights and choices.
        triplets: Compute the triplet losses; otherwise they are zero, for batches without positives.
    """
    assert output.logits is not None, "the loss needs the output of training mode"
    zero = output.global_feature.float().sum() * 0.0 + 0.0
    shown = shown_parts(targets)
    if output.part_mask_logits is None:
        triplet = masks = identity = zero
    else:
        triplet = _triplet(output, pids, shown, config) if triplets else zero
        masks = mask_loss(output.body_mask_logits, output.part_mask_logits, targets)
        identity = _identity(output, pids, shown, config)
    global_feature = zero if output.logits.global_feature is None else _global(output, pids, config, triplets=triplets)
    total = config.balance * (triplet + config.mask_weight * masks) + (1.0 - config.balance) * identity + global_feature
    return LossParts(total, triplet, masks, identity, global_feature)


def shown_parts(targets: MaskTargets) -> Tensor:
    """Return which parts true masks show: (B, 4) bool, all supervised ones where an image has no mask."""
    return (visible_semantic(targets.parts) | ~targets.has_mask.unsqueeze(1)) & targets.supervised_parts


def mask_loss(body_mask_logits: Tensor | None, part_logits: Tensor, targets: MaskTargets) -> Tensor:
    """Return L_se (eq. 8, 9): per-pixel binary cross-entropy, mean over pixels and images, summed over the masks.

    Images without a mask are left out, and so are parts that the masks do not supervise: they are zero in every mask.
    Without a single mask the loss is zero.

    Args:
        body_mask_logits: (B, 1, H, W), or None: no such term.
        part_logits: (B, 4, h, w).
        targets: Augmented masks of the batch.
    """
    weight = targets.has_mask.to(torch.float32)
    count = weight.sum().clamp_min(1.0)

    def term(logits: Tensor, target: Tensor) -> Tensor:
        """(C,) mean of each mask's cross-entropy over the images that have masks."""
        target = resized(target.float(), logits.shape[2:])
        pixels = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return (pixels.mean((2, 3)) * weight.unsqueeze(1)).sum(0) / count

    loss = (term(part_logits, targets.parts) * targets.supervised_parts).sum()
    return loss if body_mask_logits is None else loss + term(body_mask_logits, targets.body).sum()


def smoothed_cross_entropy(logits: Tensor, pids: Tensor, chosen: Tensor, smoothing: float) -> Tensor:
    """Average eq. 10 of logits (B, P, K) of P features per image over the `chosen` ones (B, P) bool.

    The others are left out of the mean, not counted as zero.
    """
    batch, features, classes = logits.shape
    each = F.cross_entropy(
        logits.float().reshape(batch * features, classes),
        pids.repeat_interleave(features),
        label_smoothing=smoothing,
        reduction="none",
    ).view(batch, features)
    weight = chosen.to(each.dtype)
    return (each * weight).sum() / weight.sum().clamp_min(1.0)


def _identity(output: NetworkOutput, pids: Tensor, shown: Tensor, config: LossConfig) -> Tensor:
    """L_d_cls: over the spatial features that eq. 3 chose, and over the shown semantic ones where they have necks."""
    assert output.logits is not None
    assert output.logits.spatial is not None
    chosen = output.spatial_present if config.dynamic else torch.ones_like(output.spatial_present)
    loss = smoothed_cross_entropy(output.logits.spatial, pids, chosen, config.smoothing)
    if output.logits.semantic is not None:
        loss = loss + smoothed_cross_entropy(output.logits.semantic, pids, shown, config.smoothing)
    return loss


def _global(output: NetworkOutput, pids: Tensor, config: LossConfig, *, triplets: bool) -> Tensor:
    """Identity losses of the global feature and of what is classified with it, and its triplet loss, weighted."""
    assert output.logits is not None
    classified = (output.logits.global_feature, output.logits.foreground, output.logits.concatenated)
    losses = [
        F.cross_entropy(each.float(), pids, label_smoothing=config.smoothing) for each in classified if each is not None
    ]
    if config.global_triplet and triplets:
        losses.append(batch_hard_triplet(*_pairs(output.global_feature, pids, None), config.margin))
    return config.global_weight * torch.stack(losses).sum()


def _triplet(output: NetworkOutput, pids: Tensor, shown: Tensor, config: LossConfig) -> Tensor:
    strips = output.spatial[:, :3]
    parts = torch.cat([output.semantic, strips], 1)
    if config.triplet_on == "parts":
        visible = torch.cat([shown, output.spatial_present[:, :3]], 1)
        return batch_hard_triplet(*_pairs(parts, pids, visible), config.margin)
    chosen = {"semantic": output.semantic, "spatial": strips, "all": parts}[config.triplet_on]
    return batch_hard_triplet(*_pairs(chosen.flatten(1), pids, None), config.margin)


def _pairs(features: Tensor, pids: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances (B, B), which pairs show the same identity, and which can be compared."""
    same = pids.unsqueeze(1) == pids.unsqueeze(0)
    if visible is None:
        return euclidean(features.float(), features.float()), same, torch.ones_like(same)
    distances, shared = shared_part_distance(features.float(), features.float(), visible, visible)
    return distances, same, shared


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (A, B) of rows (A, D) and (B, D); the gradient of equal rows is finite."""
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2.0 * (a @ b.T)
    return squared.clamp_min(1e-12).sqrt()


def shared_part_distance(a: Tensor, b: Tensor, visible_a: Tensor, visible_b: Tensor) -> tuple[Tensor, Tensor]:
    """Average the Euclidean distance over the parts that both images show, as matching does.

    Features are (A, P, D) and (B, P, D), `visible_a` and `visible_b` (A, P) and (B, P) bool. Returns the distances
    (A, B), and whether a pair shares a part (A, B).
    """
    parts_a, parts_b = a.transpose(0, 1), b.transpose(0, 1)
    squared = parts_a.square().sum(2, keepdim=True) + parts_b.square().sum(2).unsqueeze(1)
    each = (squared - 2.0 * parts_a @ parts_b.transpose(1, 2)).clamp_min(1e-12).sqrt()
    both = visible_a.T.unsqueeze(2) & visible_b.T.unsqueeze(1)
    count = both.sum(0)
    return (each * both).sum(0) / count.clamp_min(1), count > 0


def batch_hard_triplet(distances: Tensor, same: Tensor, valid: Tensor, margin: float) -> Tensor:
    """Return the batch-hard triplet loss (Hermans et al., 2017).

    Args:
        distances: (A, N) from anchors to candidates. The anchor itself may be among them: its distance of zero
            is never the hardest positive unless there is no other.
        same: (A, N) bool, same identity.
        valid: (A, N) bool, pairs that can be compared at all.
        margin: alpha; 0 for the soft margin, log(1 + exp(positive - negative)).

    Returns:
        Mean over the anchors that have a positive and a negative; zero (with a graph) if none has.
    """
    positive, negative = same & valid, ~same & valid
    farthest = distances.masked_fill(~positive, -torch.inf).amax(1)
    nearest = distances.masked_fill(~negative, torch.inf).amin(1)
    usable = positive.any(1) & negative.any(1)
    gap = torch.where(usable, farthest, 0.0) - torch.where(usable, nearest, 0.0)
    loss = F.relu(gap + margin) if margin > 0 else F.softplus(gap)
    each = loss * usable.to(gap.dtype)
    return each.sum() / usable.sum().clamp_min(1) + distances.sum() * 0.0

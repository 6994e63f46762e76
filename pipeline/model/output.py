"""What a network returns for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class IdentityLogits:
    """Identity logits, computed in training only. K is the number of training identities.

    Attributes:
        spatial: (B, 5, K), in the order of `spatial.COMBINATIONS`; None in the baseline.
        semantic: (B, 4, K), where the model has necks.
        global_feature: (B, K), where the model has a trained global feature.
        foreground: (B, K), where the model has a foreground feature.
        concatenated: (B, K) of the seven parts side by side, where the model classifies them so.
    """

    spatial: Tensor | None
    semantic: Tensor | None
    global_feature: Tensor | None
    foreground: Tensor | None = None
    concatenated: Tensor | None = None


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """Output of a network for B images.

    Attributes:
        body_mask_logits: (B, 1, H/4, W/4), or None without body attention.
        part_mask_logits: (B, 4, h, w) for head, upper, lower, shoes, at the stride of the mask head; None in the
            baseline.
        semantic: (B, 4, D) before any neck; the triplet loss works on these.
        spatial: (B, 5, D) before the neck: top, middle, bottom, top+middle, middle+bottom.
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
    logits: IdentityLogits | None

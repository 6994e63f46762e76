"""What comes after the features: pooling over the image, BNNecks, identity classifiers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.model.backbone import REFERENCE_DIM

_LEAST_ROWS = 4


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation whose statistics leave out the rows that are absent.

    Absent spatial features (eq. 3) are zero vectors; counted in, they would shift the statistics of those that
    are there. Selecting rows would make shapes depend on data and stall a GPU, so rows are weighted instead.
    """

    def forward(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Normalise (B, D) features; `present` (B,) bool: the rows that count in training."""
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
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            # Half the rows move the running statistics half as far.
            momentum = torch.where(enough, self.momentum * count / features.shape[0], 0.0)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1.0)), momentum)
            self.num_batches_tracked.add_(1)
        normal = (values - mean) * torch.rsqrt(variance + self.eps)
        return (normal * self.weight + self.bias).to(features.dtype)


class Head(nn.Module):
    """A BNNeck and an identity classifier without bias (paper, Sec. 4.2; Luo et al., 2019).

    A step of Adam moves every weight by the learning rate, so logits over D features of unit variance move D times as
    far: a part of dimension 256 would learn its identities eight times as slowly as a feature of 2,048. The logits are
    scaled by 2,048 / D, so that all learn at the same pace (Yang et al., "Tensor Programs V", 2021).

    Args:
        dim: Dimension D of the feature.
        classes: Number of training identities.
        scale: Further factor of the logits.
    """

    def __init__(self, dim: int, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.neck = MaskedBatchNorm1d(dim)
        # A neck without shift keeps the features around the origin, where cosine distances make sense.
        self.neck.bias.requires_grad_(False)
        self.classify = nn.Linear(dim, classes, bias=False)
        nn.init.normal_(self.classify.weight, std=0.001)
        self.scale = scale * REFERENCE_DIM / dim

    def forward(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, D) -> features after the neck (B, D) and logits (B, K)."""
        after = self.neck(features, present)
        return after, self.classify(after) * self.scale


class GlobalPooling(nn.Module):
    """Pooling of a whole feature map: its mean, the mean of mean and maximum, or a generalised mean.

    Args:
        kind: `gem` is the generalised mean with a trained exponent that starts at 3 (Radenovic et al., 2019).
    """

    def __init__(self, kind: Literal["average", "average+max", "gem"]) -> None:
        super().__init__()
        self.kind = kind
        self.exponent = nn.Parameter(torch.tensor(3.0)) if kind == "gem" else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        if self.exponent is not None:
            powers = features.float().clamp_min(1e-6).pow(self.exponent)
            return powers.mean((2, 3)).pow(1.0 / self.exponent).to(features.dtype)
        mean = features.mean((2, 3))
        return mean if self.kind == "average" else (mean + features.amax((2, 3))) / 2

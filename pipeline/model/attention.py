"""The attention modules of the semantic-guided branch (paper, Sec. 3.1, Fig. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.backbone import REFERENCE_DIM, FeatureMaps
from pipeline.parts import SEMANTIC

_LEAST_HIDDEN = 16
"""Narrow backbones (24 channels in MobileNetV2) would leave three channels to predict the mask from."""

_DILATION = 4


def _convolution(channels: int, width: int, size: int = 1, dilation: int = 1) -> tuple[nn.Module, ...]:
    """A convolution with normalisation and activation that keeps the size of the map."""
    padding = size // 2 * dilation
    convolution = nn.Conv2d(channels, width, size, padding=padding, dilation=dilation, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)


class BodyAttention(nn.Module):
    """Spatial and channel attention on stage-1 features; the spatial map is the supervised body mask.

    The paper shows the sub-modules in a figure only. These (docs/concepts/method.md) resemble those of the Bottleneck
    Attention Module (Park et al., BMVC 2018): spatial = 1x1 convolution to C/gamma, two 3x3 convolutions with dilation
    4, each with BN and ReLU, and a 3x3 convolution to one channel; channel = squeeze-and-excitation with the same
    gamma. f' = f * M' as in Sec. 3.1, times the channel weights.

    At stride 4 a cell of the features has seen 19 pixels in MobileNetV2 and 35 in ResNet-50, in which a shirt and a
    wall look alike; with the dilated convolutions its mask sees 91 and 107.

    Only the parser's masks train it: the gradient of the identity losses, to which the mask is a factor on every cell,
    outweighed theirs and left the mask flat (docs/concepts/design-decisions.md). Its logits are scaled like those of
    `Head`.

    Args:
        channels: C of the features.
        reduction: gamma of Fig. 3.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(_LEAST_HIDDEN, channels // reduction)
        self.spatial = nn.Sequential(
            *_convolution(channels, hidden),
            *_convolution(hidden, hidden, 3, _DILATION),
            *_convolution(hidden, hidden, 3, _DILATION),
        )
        self.mask = nn.Conv2d(hidden, 1, 3, padding=1)
        self.scale = REFERENCE_DIM / (hidden * 9)
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masked features (B, C, H, W), and the mask's logits (B, 1, H, W)."""
        logits = self.mask(self.spatial(features)) * self.scale
        weights = self.channel(features.mean((2, 3), keepdim=True))
        return features * torch.sigmoid(logits.detach()) * torch.sigmoid(weights), logits


class LocalAttention(nn.Module):
    """Four part masks on stage-4 features: one shared convolution, then a head for each part (Fig. 4).

    The sigmoids are independent; parts do not compete.

    Args:
        channels: C of the features.
        reduction: gamma_1 of Fig. 4.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.shared = nn.Sequential(*_convolution(channels, hidden))
        # One convolution with four outputs holds the four independent heads.
        self.heads = nn.Conv2d(hidden, len(SEMANTIC), 3, padding=1)

    def forward(self, maps: FeatureMaps) -> Tensor:
        """Return the logits (B, 4, H/16, W/16) of the part masks, in the order of `SEMANTIC`."""
        logits: Tensor = self.heads(self.shared(maps.last))
        return logits


class FineLocalAttention(nn.Module):
    """Four part masks at stride 8 from fused features: semantic ones of stage 4 and detailed ones of stage 2.

    At stride 16 an image of 128 x 64 pixels has 8 x 4 cells, in which shoes and heads are lost.

    Args:
        middle_channels: Channels of the features at stride 8.
        late_channels: Channels of the last features, at stride 16.
        hidden: Width of the fused features.
    """

    def __init__(self, middle_channels: int, late_channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.late = nn.Conv2d(late_channels, hidden, 1, bias=False)
        self.middle = nn.Conv2d(middle_channels, hidden, 1, bias=False)
        self.fuse = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), *_convolution(hidden, hidden, 3))
        self.heads = nn.Conv2d(hidden, len(SEMANTIC), 3, padding=1)

    def forward(self, maps: FeatureMaps) -> Tensor:
        """Return the logits (B, 4, H/8, W/8) of the part masks; at stride 16 where the backbone has no finer map."""
        late, middle = self.late(maps.last), self.middle(maps.middle)
        # Nearest neighbours by broadcasting: interpolation has no deterministic gradient on a GPU.
        times = middle.shape[2] // late.shape[2]
        late = late[:, :, :, None, :, None].expand(-1, -1, -1, times, -1, times).reshape(middle.shape)
        logits: Tensor = self.heads(self.fuse(late + middle))
        return logits


def averaged_to(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Average masks (B, C, H, W) over blocks of cells, to a map of `size` that divides theirs."""
    height, width = size
    rows, columns = masks.shape[2] // height, masks.shape[3] // width
    if rows == columns == 1:
        return masks
    return masks.reshape(*masks.shape[:2], height, rows, width, columns).mean((3, 5))


class PartEmbeddings(nn.Module):
    """Masked projections of a feature map, one per part: mask, 1x1 convolution, BN, ReLU.

    A 1x1 convolution without bias commutes with a factor per pixel, conv(f m) = m conv(f), so all parts share one
    large product on the unmasked features, without masked copies.

    Args:
        channels: C of the features.
        dim: Dimension D of a part's feature.
        parts: Number of parts P.
    """

    def __init__(self, channels: int, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.project = nn.Conv2d(channels, parts * dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(parts * dim)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Project features (B, C, H, W) by masks (B, P, H, W) in [0, 1] to (B, P, D, H, W)."""
        projected: Tensor = self.project(features)
        batch, _, height, width = projected.shape
        shape = (batch, self.parts, -1, height, width)
        masked = projected.view(shape) * masks.unsqueeze(2).to(projected.dtype)
        activated = torch.relu(self.norm(masked.flatten(1, 2)))
        return activated.view(shape)


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Average the features (B, P, D, H, W) of each part weighted by its mask (B, P, H, W): (B, P, D).

    An empty mask gives zeros, not NaN.
    """
    weights = masks.to(features.dtype)
    total = weights.sum((2, 3)).clamp_min(1e-6).unsqueeze(2)
    return torch.einsum("bpdhw,bphw->bpd", features, weights) / total

"""Vision transformers of timm as backbones: ViT and Swin at stride 16.

ViT has stride 16 throughout: all maps have its width, and the body mask lies at stride 16 like the part masks. Class
and register tokens are left out, as in ViTDet (Li et al., ECCV 2022). Swin has strides 4, 8 and 16; its last stage
stays at 16, because its patch merging moves by one cell instead of two.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError, WeightsError
from pipeline.model.backbone import Backbone, BackboneInfo, choose_prefix, load_weights, strip_prefix
from pipeline.runtime.memory import out_of_memory

EXPECTED = (
    "a ViT, a Swin, or a convolutional network whose stages follow each other, with features at strides 4, 8 and 16 "
    "(docs/how-to/own-backbone.md)"
)
_PATCH = 16
_GRID = (16, 8)
"""Grid of position embeddings: patches of an image of 256 x 128 pixels. Other image sizes interpolate it."""

_DERIVED = ("relative_position_index", "attn_mask")

_SEMANTIC_WEIGHT = 0.2
"""SOLIDER's weight of semantic against appearance information that its authors use for re-identification."""


class _Tokens(nn.Module):
    """A ViT's patch embedding with positions: images (B, 3, H, W) -> (B, C, H/16, W/16)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.project: nn.Module = network.patch_embed.proj
        self.norm = nn.Sequential(network.patch_embed.norm, network.norm_pre)
        self.position = nn.Parameter(network.pos_embed.detach().reshape(*_GRID, -1).clone())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.project(images)
        rows, columns = (_linear(*sizes, features) for sizes in zip(features.shape[2:], _GRID, strict=True))
        # Products, because interpolation has no deterministic gradient on a GPU.
        position = torch.einsum("hy,wx,yxc->hwc", rows, columns, self.position)
        tokens: Tensor = self.norm(features.permute(0, 2, 3, 1) + position)
        return tokens.permute(0, 3, 1, 2)


def _linear(length: int, cells: int, like: Tensor) -> Tensor:
    """(length, cells) weights of linear interpolation; the identity where both are equal."""
    centres = (torch.arange(length, device=like.device) + 0.5) * (cells / length) - 0.5
    distance = centres.clamp(0, cells - 1)[:, None] - torch.arange(cells, device=like.device)
    return (1.0 - distance.abs()).clamp_min(0.0)


class _Blocks(nn.Module):
    """Transformer blocks on tokens, between maps (B, C, h, w)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*blocks)

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.parts(features.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(features.shape)


class _WindowBlocks(nn.Module):
    """Swin's stages, which keep channels last, between maps (B, C, h, w)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*blocks)

    def forward(self, features: Tensor) -> Tensor:
        cells: Tensor = self.parts(features.permute(0, 2, 3, 1))
        return cells.permute(0, 3, 1, 2)


class DensePatchMerging(nn.Module):
    """Swin's patch merging at every cell instead of every second one; the last row and column are repeated.

    Args:
        norm: Over the 4 C channels of four cells.
        reduction: From these to the channels of the next stage.
    """

    def __init__(self, norm: nn.Module, reduction: nn.Module) -> None:
        super().__init__()
        self.norm, self.reduction = norm, reduction

    def forward(self, cells: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, 2 C)."""
        cells = torch.cat([cells, cells[:, -1:]], 1)
        cells = torch.cat([cells, cells[:, :, -1:]], 2)
        upper, lower = cells[:, :-1], cells[:, 1:]
        neighbours = [upper[:, :, :-1], lower[:, :, :-1], upper[:, :, 1:], lower[:, :, 1:]]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, 3)))
        return merged


def build_transformer(name: str, weights: Mapping[str, Tensor] | None) -> Backbone | None:
    """Build a backbone from one of timm's transformers.

    Args:
        name: timm's name of the network.
        weights: State dict as timm keys it, for Swin also as SOLIDER does; None: random.

    Returns:
        The backbone; None if the network is neither ViT nor Swin.

    Raises:
        ConfigError: It is one that cannot have stride 16.
        WeightsError: The weights belong to another network.
    """
    import timm
    from timm.models import swin_transformer, vision_transformer

    entry = timm.model_entrypoint(name.partition(".")[0]) if timm.is_model(name) else None
    module = getattr(entry, "__module__", None)
    if module == vision_transformer.__name__:
        return _vit(name, weights)
    return _swin(name, weights) if module == swin_transformer.__name__ else None


def create_network(name: str, **options: Any) -> Any:
    """Create a network of timm with random weights.

    Raises:
        ConfigError: timm has no such network, or none with these options.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options)
    # timm's models fail in many ways that cannot do this.
    except Exception as error:
        if isinstance(error, MemoryError) or out_of_memory(error):
            raise
        raise ConfigError(
            f"timm cannot build {name!r} with features at output stride 16",
            where="model.backbone",
            expected=EXPECTED,
            cause=error,
        ) from error


@contextmanager
def _converting(name: str) -> Iterator[None]:
    """Report entries that are missing or have another shape while they are renamed and resampled."""
    try:
        yield
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise WeightsError(f"these weights are damaged or not those of timm:{name}", cause=error) from error


def _vit(name: str, weights: Mapping[str, Tensor] | None) -> Backbone:
    size = (_GRID[0] * _PATCH, _GRID[1] * _PATCH)
    network = create_network(
        name, num_classes=0, global_pool="avg", fc_norm=False, class_token=False, reg_tokens=0, img_size=size
    )
    if network.patch_embed.patch_size != (_PATCH, _PATCH) or network.pos_embed is None:
        raise ConfigError(
            f"timm's {name!r} cannot have features at stride {_PATCH}",
            where="model.backbone",
            expected=f"a ViT with patches of {_PATCH} pixels and learned positions",
        )
    if weights is not None:
        with _converting(name):
            weights = _with_positions(weights)
        load_weights(network, weights, f"timm:{name}")
    blocks, channels = list(network.blocks), int(network.embed_dim)
    cuts = [round(len(blocks) * quarter / 4) for quarter in range(5)]
    early, middle, deep, last = (blocks[begin:end] for begin, end in itertools.pairwise(cuts))
    return Backbone(
        nn.Sequential(_Tokens(network), _Blocks(*early)),
        _Blocks(*middle),
        _Blocks(*deep),
        _Blocks(*last, network.norm),
        BackboneInfo(channels, channels, channels, channels),
    )


def _with_positions(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ViT's entries without its prefix, with positions resampled to `_GRID` and without those of extra tokens.

    Raises:
        WeightsError: The number of positions fits no supported grid, or the file has several such networks.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefixes = [name.removesuffix("pos_embed") for name in weights if re.search(r"(^|\.)pos_embed$", name)]
    # Decoders have positions too, but no patches of an image.
    prefix = choose_prefix([prefix for prefix in prefixes if f"{prefix}patch_embed.proj.weight" in weights] or [""])
    state_dict = strip_prefix(weights, prefix)
    pos_embed = state_dict.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3:
        return state_dict
    tokens = ("cls_token", "dist_token", "reg_token")
    prefix_tokens = sum(state_dict[name].shape[1] for name in tokens if name in state_dict)
    for count in (prefix_tokens, 0):
        if (grid := _grid(pos_embed.shape[1] - count)) is not None:
            resampled = resample_abs_pos_embed(pos_embed, list(_GRID), list(grid), num_prefix_tokens=count)
            return state_dict | {"pos_embed": resampled[:, count:]}
    raise WeightsError(
        f"{pos_embed.shape[1]} position embeddings fit no supported grid", expected="one of n x n or 2 n x n patches"
    )


def _grid(patches: int) -> tuple[int, int] | None:
    side, half = math.isqrt(max(patches, 0)), math.isqrt(max(patches, 0) // 2)
    if side * side == patches:
        return side, side
    return (2 * half, half) if 2 * half * half == patches else None


def _swin(name: str, weights: Mapping[str, Tensor] | None) -> Backbone:
    # Full windows of padded maps, whatever the size of the images.
    network = create_network(name, num_classes=0, strict_img_size=False, always_partition=True)
    if network.patch_embed.patch_size != (4, 4) or len(network.layers) != 4:
        raise ConfigError(f"timm's {name!r} cannot have features at strides 4, 8 and 16", where="model.backbone")
    biases: dict[int, Tensor] = {}
    if weights is not None:
        # Buffers that follow from the window size; some files have them.
        weights = {key: value for key, value in weights.items() if not key.endswith(_DERIVED)}
        with _converting(name):
            weights, biases = _from_solider(weights)
        load_weights(network, weights, f"timm:{name}")
    for i, layer in enumerate(network.layers):
        if i > 0:
            _add_bias(layer.downsample, biases.get(i))
    last = network.layers[-1]
    last.downsample = DensePatchMerging(last.downsample.norm, last.downsample.reduction)
    first, second, third, fourth = network.layers
    early = _EarlySwin(network.patch_embed, first)
    channels = [int(info["num_chs"]) for info in network.feature_info]
    stages = _WindowBlocks(second), _WindowBlocks(third), _WindowBlocks(fourth, network.norm)
    return Backbone(early, *stages, BackboneInfo(*channels))


class _EarlySwin(nn.Module):
    """Swin's patch embedding and first stage: images (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, embed: nn.Module, stage: nn.Module) -> None:
        super().__init__()
        self.embed, self.stage = embed, stage

    def forward(self, images: Tensor) -> Tensor:
        cells: Tensor = self.stage(self.embed(images))
        return cells.permute(0, 3, 1, 2)


def _add_bias(merging: Any, bias: Tensor | None) -> None:
    """Give a patch merging a bias: SOLIDER's, or zeros, with which it computes what it did without."""
    unbiased: nn.Linear = merging.reduction
    merging.reduction = nn.Linear(unbiased.in_features, unbiased.out_features)
    with torch.no_grad():
        merging.reduction.weight.copy_(unbiased.weight)
        merging.reduction.bias.copy_(torch.zeros(unbiased.out_features) if bias is None else bias)


def _from_solider(weights: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict[int, Tensor]]:
    """Rename the entries of SOLIDER's Swin (Chen et al., CVPR 2023), which are mmdetection's, to timm's.

    Its features are scaled and shifted after each stage, as the semantic weight says: the scale becomes part of the
    patch merging that comes before, and the shift its bias.

    Returns:
        The entries, unchanged if they are not SOLIDER's, and the bias of the patch mergings by layer.
    """
    key = next((name for name in weights if name.endswith(_SOLIDER_KEY)), None)
    if key is None:
        return weights, {}
    state_dict = strip_prefix(weights, key.removesuffix(_SOLIDER_KEY))
    renamed, biases = {}, {}
    for name, value in state_dict.items():
        for old, new in _SOLIDER_NAMES.items():
            name = name.replace(old, new)
        if ".downsample." in name:
            _, stage, rest = name.split(".", 2)
            name, value = f"layers.{int(stage) + 1}.{rest}", _reorder_inputs(value)
        renamed[name] = value
    semantic = torch.tensor([_SEMANTIC_WEIGHT, 1 - _SEMANTIC_WEIGHT])
    for i in range(3):
        if f"semantic_embed_w.{i}.weight" not in state_dict:
            continue
        scale, shift = (
            state_dict[f"semantic_embed_{kind}.{i}.weight"] @ semantic + state_dict[f"semantic_embed_{kind}.{i}.bias"]
            for kind in "wb"
        )
        merging = f"layers.{i + 1}.downsample.reduction.weight"
        renamed[merging] = renamed[merging] * F.softplus(scale)[:, None]
        biases[i + 1] = shift
    return renamed, biases


_SOLIDER_KEY = "stages.0.blocks.0.attn.w_msa.qkv.weight"
_SOLIDER_NAMES = {
    "stages.": "layers.",
    "attn.w_msa.": "attn.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "patch_embed.projection.": "patch_embed.proj.",
    "norm3.": "norm.",
}


def _reorder_inputs(value: Tensor) -> Tensor:
    """Reorder the 4 C inputs of a patch merging from (channel, row, column) to timm's (column, row, channel)."""
    channels = value.shape[-1] // 4
    return value.reshape(*value.shape[:-1], channels, 2, 2).transpose(-1, -3).flatten(-3)

"""ViT and Swin of timm at stride 16, and the layouts of published person-pre-trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LossConfig, ModelConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.formats.foreign import load_state_dict
from pipeline.model.backbone import build_backbone
from pipeline.model.losses import total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.model.sgsfa import SGSFA

timm = pytest.importorskip("timm", reason="backbones of timm need the extra timm")
from timm.models.swin_transformer import PatchMerging  # noqa: E402

from pipeline.model.timm_transformer import DensePatchMerging, _reorder_inputs, _with_positions  # noqa: E402

VIT, SWIN = "timm:test_vit", "timm:swin_tiny_patch4_window7_224"


def config(backbone: str, **options: object) -> ModelConfig:
    base = {"backbone": backbone, "weights": "none", "height": 64, "width": 32, "part_dim": 8, "necks": True}
    return ModelConfig.model_validate(base | {"global_dim": 8} | options)


@pytest.mark.parametrize(
    ("backbone", "mask", "options"),
    [
        (VIT, (4, 2), {}),
        (VIT, (4, 2), {"fine_masks": True, "part_features": "middle"}),
        (SWIN, (16, 8), {"fine_masks": True, "part_features": "deep"}),
        ("timm:test_convnext", (16, 8), {}),
    ],
)
def test_transformer__trains_every_parameter(backbone: str, mask: tuple[int, int], options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build_model(config(backbone, **options), 3).train()
    assert isinstance(network, SGSFA)
    nn.init.constant_(network.local_attention.heads.bias, 1.0)
    output = network(torch.randn(6, 3, 64, 32))
    assert output.body_mask_logits is not None
    assert output.body_mask_logits.shape == (6, 1, *mask)
    targets = MaskTargets(
        torch.rand(6, 4, 8, 4),
        torch.rand(6, 1, 16, 8),
        torch.ones(6, dtype=torch.bool),
        torch.ones(4, dtype=torch.bool),
    )
    total_loss(output, torch.tensor([0, 0, 1, 1, 2, 2]), targets, LossConfig(margin=0)).total.backward()
    silent = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@pytest.mark.parametrize("backbone", [VIT, SWIN])
def test_transformer__takes_any_image_size(backbone: str) -> None:
    network = build_model(config(backbone, height=128, width=64), 3).eval()
    for height, width in ((128, 64), (256, 128), (96, 64)):
        output = network(torch.randn(1, 3, height, width))
        assert output.part_mask_logits is not None
        assert output.part_mask_logits.shape[2:] == (height // 16, width // 16)


def test_vit__equals_timm_without_class_token() -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "test_vit", num_classes=0, class_token=False, global_pool="avg", fc_norm=False, img_size=(256, 128)
    ).eval()
    backbone = build_backbone(VIT, network.state_dict()).eval()
    images = torch.randn(2, 3, 256, 128)
    with torch.no_grad():
        expected = network.forward_features(images).transpose(1, 2).reshape(2, -1, 16, 8)
        torch.testing.assert_close(backbone(images).last, expected, rtol=1e-4, atol=1e-4)


def vit_state(grid: tuple[int, int], prefix: str = "") -> dict[str, Tensor]:
    """Entries of a published ViT: those of timm, with a class token and positions of its own grid."""
    state = timm.create_model("test_vit", num_classes=10, img_size=(grid[0] * 16, grid[1] * 16)).state_dict()
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"} <= set(
        state
    )
    assert state["pos_embed"].shape[1] == 1 + grid[0] * grid[1]
    return {prefix + name: torch.randn_like(value) for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_vit__keeps_positions_of_person_shaped_grids(prefix: str) -> None:
    """TransReID pre-trains at 256 x 128; ImageNet's square grids are resampled."""
    state = vit_state((16, 8), prefix)
    backbone = build_backbone(VIT, state)
    expected = state[prefix + "pos_embed"][0, 1:].reshape(16, 8, -1)
    torch.testing.assert_close(backbone.early[0].position, expected)
    assert _with_positions(vit_state((14, 14)))["pos_embed"].shape == (1, 128, 64)
    state.pop(prefix + "blocks.3.mlp.fc1.bias")
    with pytest.raises(WeightsError, match=r"blocks\.3\.mlp\.fc1\.bias"):
        build_backbone(VIT, state)
    state[prefix + "pos_embed"] = torch.zeros(1, 24, 64)
    with pytest.raises(WeightsError, match="24 position"):
        build_backbone(VIT, state)


def test_vit__takes_the_encoder_of_a_file_with_a_decoder() -> None:
    """MAE saves a decoder with positions of its own, in any order."""
    state = vit_state((16, 8))
    extra = {"decoder_pos_embed": torch.zeros(1, 129, 32), "decoder.pos_embed": torch.zeros(1, 129, 32)}
    backbone = build_backbone(VIT, {**extra, **state})
    torch.testing.assert_close(backbone.early[0].position, state["pos_embed"][0, 1:].reshape(16, 8, -1))


def test_vit__two_encoders_are_refused_unless_one_is_the_trained() -> None:
    trained, average = vit_state((16, 8), "encoder_q."), vit_state((16, 8), "encoder_k.")
    backbone = build_backbone(VIT, average | trained)
    expected = trained["encoder_q.pos_embed"][0, 1:].reshape(16, 8, -1)
    torch.testing.assert_close(backbone.early[0].position, expected)
    with pytest.raises(WeightsError, match="several networks"):
        build_backbone(VIT, average | vit_state((16, 8), "student."))


@pytest.mark.parametrize(
    ("name", "value"), [("semantic_embed_w.0.bias", None), ("stages.0.downsample.reduction.weight", torch.zeros(3, 5))]
)
def test_swin__damaged_solider_weights_are_no_matter_of_the_backbone(name: str, value: Tensor | None) -> None:
    state = {key: torch.zeros(shape) for key, shape in solider_shapes().items()}
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(WeightsError, match="damaged or not those of timm:swin_tiny"):
        build_backbone(SWIN, state)


def test_build_timm__exhausted_memory_is_no_matter_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(MemoryError):
        build_backbone(VIT, None)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cannot build 'no_such_network'"):
        build_backbone("timm:no_such_network", None)


def test_vit__other_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="stride 16"):
        build_backbone("timm:vit_small_patch32_224")


def test_dense_merging__has_the_cells_of_the_plain_one_among_its_own() -> None:
    torch.manual_seed(0)
    plain = PatchMerging(6)
    dense = DensePatchMerging(plain.norm, plain.reduction)
    cells = torch.randn(2, 8, 4, 6)
    merged = dense(cells)
    assert merged.shape == (2, 8, 4, 12)
    torch.testing.assert_close(merged[:, ::2, ::2], plain(cells))


def solider_shapes(dim: int = 96, depths: tuple[int, ...] = (2, 2, 6, 2)) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of SOLIDER's Swin Tiny (github.com/tinyvision/SOLIDER, the teacher's backbone)."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.projection.weight": (dim, 3, 4, 4),
        "patch_embed.projection.bias": (dim,),
        "patch_embed.norm.weight": (dim,),
        "patch_embed.norm.bias": (dim,),
    }
    for i, depth in enumerate(depths):
        width, heads = dim << i, 3 << i
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}."
            layers = {
                "norm1": (width,), "norm2": (width,), "attn.w_msa.qkv": (3 * width, width),
                "attn.w_msa.proj": (width, width), "ffn.layers.0.0": (4 * width, width),
                "ffn.layers.1": (width, 4 * width),
            }  # fmt: skip
            for name, shape in layers.items():
                shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
            shapes[f"{block}attn.w_msa.relative_position_bias_table"] = (169, heads)
            shapes[f"{block}attn.w_msa.relative_position_index"] = (49, 49)
        if i < 3:
            merging = f"stages.{i}.downsample."
            shapes |= {f"{merging}norm.weight": (4 * width,), f"{merging}norm.bias": (4 * width,)}
            shapes[f"{merging}reduction.weight"] = (2 * width, 4 * width)
        shapes |= {f"norm{i}.weight": (width,), f"norm{i}.bias": (width,)}
        for kind in "wb":
            after = dim << min(i + 1, 3)
            shapes |= {f"semantic_embed_{kind}.{i}.weight": (after, 2), f"semantic_embed_{kind}.{i}.bias": (after,)}
    return shapes


def test_swin__takes_solider(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"backbone.{name}": torch.randn(shape) * 0.05 for name, shape in solider_shapes().items()}
    torch.save({"teacher": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "checkpoint.pth")
    backbone = build_backbone(SWIN, load_state_dict(tmp_path / "checkpoint.pth"))
    last = backbone.last.parts[0].downsample
    semantic = torch.tensor([0.2, 0.8])
    scale, shift = (
        state[f"backbone.semantic_embed_{kind}.2.weight"] @ semantic + state[f"backbone.semantic_embed_{kind}.2.bias"]
        for kind in "wb"
    )
    # mmdetection's patch merging unfolds (channel, row, column); the scale and shift follow the reduction.
    cells = torch.randn(1, 4, 2, 384)
    unfolded = nn.functional.unfold(cells.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    norm = {kind: state[f"backbone.stages.2.downsample.norm.{kind}"] for kind in ("weight", "bias")}
    normal = nn.functional.layer_norm(unfolded, (1536,), norm["weight"], norm["bias"])
    merged = normal @ state["backbone.stages.2.downsample.reduction.weight"].T
    expected = merged * nn.functional.softplus(scale) + shift
    torch.testing.assert_close(last(cells)[:, ::2, ::2].flatten(1, 2), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.last.parts[1].weight, state["backbone.norm3.weight"])
    fc1 = backbone.deep.parts[0].blocks[5].mlp.fc1.weight
    torch.testing.assert_close(fc1, state["backbone.stages.2.blocks.5.ffn.layers.0.0.weight"])
    state.pop("backbone.stages.3.blocks.1.ffn.layers.1.bias")
    with pytest.raises(WeightsError, match=r"layers\.3\.blocks\.1\.mlp\.fc2\.bias"):
        build_backbone(SWIN, state)


def test_reorder_inputs__channel_row_column_to_column_row_channel() -> None:
    channels, rows, columns = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(2), indexing="ij")
    reordered = _reorder_inputs((channels * 100 + rows * 10 + columns).flatten())
    assert reordered.tolist() == [c * 100 + r * 10 + w for w in range(2) for r in range(2) for c in range(3)]

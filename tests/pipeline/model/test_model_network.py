"""Shapes, gradients, masked statistics and the network's behaviour at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.config import LossConfig, ModelConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.model.attention import BodyAttention, LocalAttention, PartEmbeddings, masked_mean
from pipeline.model.backbone import build_backbone
from pipeline.model.baseline import Baseline
from pipeline.model.heads import Head, MaskedBatchNorm1d
from pipeline.model.losses import total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.model.sgsfa import SGSFA

STRONG = {"global_dim": 256, "necks": True}


def tiny(**options: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "height": 64, "width": 32, "part_dim": 16, **options}
    )


def assert_strides(name: str, early: int, late: int) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        first = backbone.early(torch.randn(1, 3, 256, 128))
        maps = backbone.rest(first)
    assert first.shape == (1, early, 64, 32)
    info = backbone.info
    assert maps.middle.shape == (1, info.middle_channels, 32, 16)
    assert maps.deep.shape == (1, info.deep_channels, 16, 8)
    assert maps.last.shape == (1, late, 16, 8)
    assert (info.early_channels, info.late_channels) == (early, late)


@pytest.mark.parametrize(
    ("name", "early", "late"),
    [("resnet18", 64, 512), ("resnet34", 64, 512), ("resnet50", 256, 2048), ("mobilenet_v2", 24, 1280)],
)
def test_backbones_give_strides_4_and_16(name: str, early: int, late: int) -> None:
    assert_strides(name, early, late)


@pytest.mark.parametrize(
    ("name", "early", "late"), [("resnet18", 64, 512), ("regnetx_002", 24, 368), ("convnext_atto", 40, 320)]
)
def test_a_timm_model_gives_strides_4_and_16(name: str, early: int, late: int) -> None:
    pytest.importorskip("timm", reason="an extra")
    assert_strides(f"timm:{name}", early, late)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_timm_model_equals_timm_itself_and_takes_its_weights(name: str) -> None:
    timm = pytest.importorskip("timm", reason="an extra")
    torch.manual_seed(0)
    own = timm.create_model(name, pretrained=False).eval()
    wanted = timm.create_model(name, features_only=True, output_stride=16, pretrained=False).eval()
    flat = {key.replace("stages_", "stages.").replace("stem_", "stem."): key for key in wanted.state_dict()}
    state = own.state_dict()
    wanted.load_state_dict({key: state[plain] for plain, key in flat.items()})
    backbone = build_backbone(f"timm:{name}", {f"model.backbone.{key}": each for key, each in state.items()}).eval()
    assert torch.equal(next(build_backbone(f"timm:{name}", state).parameters()), next(backbone.parameters()))
    images = torch.randn(1, 3, 64, 32)
    early = wanted.feature_info.reduction().index(4)
    with torch.no_grad():
        features = wanted(images)
        torch.testing.assert_close(backbone.early(images), features[early])
        torch.testing.assert_close(backbone(images).last, features[-1])
    with pytest.raises(WeightsError, match="timm:resnet18"):
        build_backbone("timm:resnet18", {})


def test_a_timm_model_that_cannot_is_refused() -> None:
    pytest.importorskip("timm", reason="an extra")
    with pytest.raises(ConfigError, match="cannot build"):
        build_backbone("timm:no_such_model")
    for name in ("hrnet_w18_small", "xception41"):
        with pytest.raises(ConfigError, match="cannot b") as caught:
            build_backbone(f"timm:{name}")
        assert "strides 4, 8 and 16" in (caught.value.expected or "")


def test_an_unknown_backbone_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="resnet51") as caught:
        build_backbone("resnet51")
    assert "resnet5" in str(caught.value.hint) or "resnet" in str(caught.value.hint)


def test_shapes_of_the_paper() -> None:
    network = build_model(ModelConfig(backbone="resnet50"), 5).train()
    output = network(torch.randn(2, 3, 256, 128))
    assert output.body_mask_logits is not None
    assert output.body_mask_logits.shape == (2, 1, 64, 32)
    assert output.part_mask_logits is not None
    assert output.part_mask_logits.shape == (2, 4, 16, 8)
    assert output.semantic.shape == (2, 4, 256)
    assert output.spatial.shape == (2, 5, 256)
    assert output.matched.shape == (2, 7, 256)
    assert output.global_feature.shape == (2, 2048)
    assert output.visibility.shape == (2, 7)
    assert output.logits is not None
    assert output.logits.spatial is not None
    assert output.logits.spatial.shape == (2, 5, 5)


@pytest.mark.parametrize(
    "options",
    [{}, STRONG, {"body_attention": False}, {"pooling": "average"}, {"body_height": "head"}, {"kind": "baseline"}],
)
def test_gradients_reach_every_parameter(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build_model(tiny(**options), 3).train()
    if isinstance(network, SGSFA):
        # A head must be found, or the dynamic classifiers rightly get no gradient.
        nn.init.constant_(network.local_attention.heads.bias, 1.0)  # type: ignore[arg-type]
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    output = network(torch.randn(6, 3, 64, 32))
    loss = total_loss(
        output,
        pids,
        MaskTargets(
            torch.rand(6, 4, 16, 8),
            torch.rand(6, 1, 64, 32),
            torch.ones(6, dtype=torch.bool),
            torch.ones(4, dtype=torch.bool),
        ),
        LossConfig(triplet_on="parts", balance=0.5),
    )
    loss.total.backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert silent == []


def with_masks(network: SGSFA, bias: float) -> SGSFA:
    """Make the network predict the same mask value everywhere."""
    nn.init.zeros_(network.local_attention.heads.weight)
    nn.init.constant_(network.local_attention.heads.bias, bias)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize("training", [True, False])
def test_no_head_means_no_visible_strip(training: bool) -> None:
    network = build_model(tiny(), 3)
    assert isinstance(network, SGSFA)
    output = with_masks(network, -20.0).train(training)(torch.randn(4, 3, 64, 32))
    assert not output.spatial_present.any()
    assert (output.visibility[:, 4:] == 0).all()
    assert (output.matched[:, 4:] == 0).all(), "a strip that is not there matches nothing"
    assert torch.isfinite(output.matched).all()


@pytest.mark.parametrize("options", [{}, STRONG])
@pytest.mark.parametrize("training", [True, False])
def test_what_the_masks_never_told_of_is_not_there(options: dict[str, object], training: bool) -> None:
    lower = build_model(tiny(**options), 3, supervised_parts=torch.tensor([True, True, False, True])).train(training)
    assert isinstance(lower, SGSFA)
    output = with_masks(lower, 20.0)(torch.randn(4, 3, 64, 32))
    assert (output.semantic[:, 2] == 0).all()
    assert (output.matched[:, 2] == 0).all()
    assert output.visibility[:, [0, 1, 3]].min() > 0.99
    assert (output.visibility[:, 2] == 0).all()
    assert output.spatial_present.all()
    head = build_model(tiny(**options), 3, supervised_parts=torch.tensor([False, True, True, True])).train(training)
    assert isinstance(head, SGSFA)
    assert not with_masks(head, 20.0)(torch.randn(4, 3, 64, 32)).spatial_present.any(), "strips begin at a head"


@pytest.mark.parametrize(("mask", "seen"), [(0.15, True), (1e-4, False)])
def test_necks_and_strips_see_what_the_masks_are_unsure_of(mask: float, seen: bool) -> None:
    network = build_model(tiny(**STRONG), 3).train()
    assert isinstance(network, SGSFA)
    output = with_masks(network, math.log(mask / (1 - mask)))(torch.randn(8, 3, 64, 32))
    assert output.spatial_present.all() == seen
    assert network.semantic_heads is not None
    for head in [*network.semantic_heads, *network.spatial_heads]:
        assert isinstance(head, Head)
        assert head.neck.running_mean is not None
        assert bool(head.neck.running_mean.any()) == seen


def test_a_head_everywhere_shows_every_strip() -> None:
    network = build_model(tiny(), 3)
    assert isinstance(network, SGSFA)
    output = with_masks(network, 20.0).eval()(torch.randn(4, 3, 64, 32))
    assert output.spatial_present.all()
    torch.testing.assert_close(output.visibility, torch.ones(4, 7))


def test_logits_are_made_in_training_only() -> None:
    network = build_model(tiny(**STRONG), 3)
    images = torch.randn(2, 3, 64, 32)
    assert network.eval()(images).logits is None
    trained = network.train()(images).logits
    assert trained is not None
    assert trained.semantic is not None
    assert trained.global_feature is not None


def test_the_baseline_shows_no_part() -> None:
    network = build_model(tiny(kind="baseline"), 3).eval()
    assert isinstance(network, Baseline)
    output = network(torch.randn(2, 3, 64, 32))
    assert (output.visibility == 0).all()
    assert output.matched_global.shape == (2, 1280)


def test_attention_multiplies_features_by_mask_and_channel_weights() -> None:
    torch.manual_seed(0)
    attention = BodyAttention(256, 8).eval()
    features = torch.randn(2, 256, 6, 4)
    masked, logits = attention(features)
    weights = torch.sigmoid(attention.channel(features.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(masked, features * torch.sigmoid(logits) * weights)
    assert attention.spatial[0].weight.shape[:2] == (32, 256), "gamma = 8"
    assert attention.scale == pytest.approx(2048 / 288), "logits move as far as those of 2,048 inputs would"
    assert BodyAttention(24, 8).spatial[0].weight.shape[0] == 16, "narrow backbones keep 16"
    assert LocalAttention(16, 2).shared[0].weight.shape[:2] == (8, 16), "gamma_1 = 2"


def test_the_whole_body_mask_is_taught_by_masks_alone() -> None:
    torch.manual_seed(0)
    attention = BodyAttention(24, 8)
    masked, logits = attention(torch.randn(2, 24, 8, 4))
    masked.sum().backward(retain_graph=True)
    assert attention.mask.weight.grad is None
    assert attention.channel[0].weight.grad is not None
    logits.sum().backward()
    assert attention.mask.weight.grad.abs().sum() > 0
    assert attention.spatial[0].weight.grad.abs().sum() > 0


def test_the_whole_body_mask_starts_near_one_half() -> None:
    network = build_model(tiny(), 3).eval()
    logits = network(torch.randn(2, 3, 64, 32)).body_mask_logits
    assert logits is not None
    assert (torch.sigmoid(logits) - 0.5).abs().max() < 0.2


def test_the_whole_body_mask_looks_further_than_a_shirt() -> None:
    torch.manual_seed(0)
    attention = BodyAttention(24, 8).eval()
    features = torch.randn(1, 24, 64, 32, requires_grad=True)
    _, logits = attention(features)
    logits[0, 0, 32, 16].backward()
    assert features.grad is not None
    rows, columns = features.grad.abs().sum((0, 1)).nonzero().unbind(1)
    # Two steps of 4 and one of 1 to each side, in cells of 4 pixels.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (23, 41, 7, 25)


def test_masked_mean_weighs_pixels_and_survives_an_empty_mask() -> None:
    features = torch.arange(8.0).view(1, 1, 1, 2, 4).expand(2, 1, 1, 2, 4)
    mask = torch.zeros(2, 1, 2, 4)
    mask[0, 0, 0, 1], mask[0, 0, 1, 3] = 0.5, 0.25
    found = masked_mean(features, mask)
    assert found[0].item() == pytest.approx((0.5 * 1 + 0.25 * 7) / 0.75)
    assert found[1].item() == 0.0


def test_one_large_product_equals_masking_and_projecting_each_part() -> None:
    torch.manual_seed(0)
    embeddings = PartEmbeddings(6, 3, 2).train()
    features, masks = torch.randn(4, 6, 5, 4), torch.rand(4, 2, 5, 4)
    found = embeddings(features, masks)
    for part in range(2):
        rows = slice(3 * part, 3 * part + 3)
        projected = nn.functional.conv2d(features * masks[:, part : part + 1], embeddings.project.weight[rows])
        expected = torch.relu(nn.BatchNorm2d(3).train()(projected))
        torch.testing.assert_close(found[:, part], expected, rtol=1e-4, atol=1e-5)


def test_masked_statistics_equal_those_of_the_present_rows() -> None:
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm1d(5).train(), nn.BatchNorm1d(5).train()
    features = torch.randn(9, 5)
    present = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    found, expected = ours(features, present), theirs(features[present])
    torch.testing.assert_close(found[present], expected)
    assert ours.running_mean is not None
    assert theirs.running_mean is not None
    # Six of nine rows move the running statistics six ninths as far.
    torch.testing.assert_close(ours.running_mean, theirs.running_mean * 6 / 9)
    assert theirs.running_var is not None
    torch.testing.assert_close(ours.running_var, 1 + (theirs.running_var - 1) * 6 / 9)


def test_classifiers_of_every_length_learn_at_the_same_pace() -> None:
    moved = []
    for length in (64, 1024):
        torch.manual_seed(0)
        head = Head(length, 5).train()
        optimizer = torch.optim.Adam(head.classify.parameters(), lr=1e-3)
        features, labels = torch.randn(64, length), torch.arange(64) % 5
        before = head(features)[1]
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features)[1], labels).backward()
            optimizer.step()
        own = (head(features)[1] - before)[torch.arange(64), labels]
        moved.append(own.mean().item())
    # 1.02; without the scale 15.6.
    assert 0.8 < moved[1] / moved[0] < 1.25


@pytest.mark.parametrize("count", [0, 1])
def test_masked_statistics_with_too_few_rows_leave_the_running_ones(count: int) -> None:
    norm = MaskedBatchNorm1d(3).train()
    present = torch.zeros(4, dtype=torch.bool)
    present[:count] = True
    assert torch.isfinite(norm(torch.randn(4, 3), present)).all()
    assert norm.running_mean is not None
    assert (norm.running_mean == 0).all()

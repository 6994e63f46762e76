"""Options of the network beyond the paper: fine masks, local parts, further embeddings, pooling, IBN-a."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from pipeline.config import LossConfig, ModelConfig
from pipeline.errors import WeightsError
from pipeline.model.attention import averaged_to
from pipeline.model.backbone import InstanceBatchNorm, NonLocal, build_backbone
from pipeline.model.heads import GlobalPooling
from pipeline.model.losses import batch_hard_triplet, total_loss
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import build_model
from pipeline.model.sgsfa import SGSFA
from pipeline.model.spatial import strips_to
from pipeline.model.weights import require_weights_for
from pipeline.training.tree import tensors_of

NECKED = {"necks": True, "global_dim": 8}
OPTIONS = [
    {"fine_masks": True},
    {"fine_masks": True, "part_features": "middle", "strip_pooling": "body"},
    {"part_features": "deep"},
    NECKED | {"foreground_dim": 16, "concatenated": True},
    NECKED | {"global_pooling": "gem", "detach_masks": True},
    {"kind": "baseline", "global_pooling": "average+max"},
]


def tiny(**options: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": "none", "height": 64, "width": 32, "part_dim": 16} | options
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_options__train_every_parameter(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build_model(tiny(**options), 3).train()
    if isinstance(network, SGSFA):
        # Without a head the spatial classifiers rightly get no gradient.
        nn.init.constant_(network.local_attention.heads.bias, 1.0)
    output = network(torch.randn(6, 3, 64, 32))
    loss = total_loss(
        output,
        torch.tensor([0, 0, 1, 1, 2, 2]),
        MaskTargets(
            torch.rand(6, 4, 16, 8),
            torch.rand(6, 1, 16, 8),
            torch.ones(6, dtype=torch.bool),
            torch.ones(4, dtype=torch.bool),
        ),
        LossConfig(triplet_on="parts", balance=0.5, margin=0),
    )
    loss.total.backward()
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_fine_masks__have_stride_8() -> None:
    network = build_model(tiny(fine_masks=True), 3).eval()
    assert network(torch.randn(2, 3, 64, 32)).part_mask_logits.shape == (2, 4, 8, 4)


def test_foreground__lengthens_the_global_feature() -> None:
    network = build_model(tiny(**NECKED, foreground_dim=16), 3).eval()
    assert network(torch.randn(2, 3, 64, 32)).matched_global.shape == (2, 24)


def test_detached_masks__learn_from_masks_alone() -> None:
    torch.manual_seed(0)
    for detached in (False, True):
        network = build_model(tiny(detach_masks=detached), 3).train()
        nn.init.normal_(network.local_attention.heads.weight, std=0.1)
        network(torch.randn(4, 3, 64, 32)).semantic.square().sum().backward()
        gradient = network.local_attention.heads.weight.grad
        assert (gradient is None or not gradient.any()) == detached


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"part_features": "middle"}, "fine_masks"),
        ({"foreground_dim": 8}, "global_dim"),
        ({"non_local": True}, "ResNet"),
    ],
)
def test_options__that_need_others(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        tiny(**options)


def test_global_pooling__kinds() -> None:
    features = torch.rand(2, 3, 4, 2) + 0.1
    mean, maximum = features.mean((2, 3)), features.amax((2, 3))
    torch.testing.assert_close(GlobalPooling("average")(features), mean)
    torch.testing.assert_close(GlobalPooling("average+max")(features), (mean + maximum) / 2)
    torch.testing.assert_close(GlobalPooling("gem")(features), features.pow(3).mean((2, 3)).pow(1 / 3))


def test_averaged_to__means_of_blocks() -> None:
    masks = torch.rand(2, 4, 16, 8)
    torch.testing.assert_close(averaged_to(masks, (8, 4)), F.avg_pool2d(masks, 2))
    assert averaged_to(masks, (16, 8)) is masks


def test_strips_to__share_rows() -> None:
    strips = torch.zeros(1, 3, 8)
    strips[0, 0, 1:3] = 1
    torch.testing.assert_close(strips_to(strips, 4)[0, 0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_soft_margin__is_softplus_of_the_gap() -> None:
    distances = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss = batch_hard_triplet(distances, same, torch.ones_like(same), 0.0)
    # The third has no positive but itself, at distance 0.
    gaps = torch.tensor([1.0 - 3.0, 1.0 - 2.0, 0.0 - 2.0])
    torch.testing.assert_close(loss, F.softplus(gaps).mean())


def published_ibn_keys(name: str) -> dict[str, torch.Size]:
    """Entries of a published IBN-a state dict, from those of the plain ResNet."""
    keys: dict[str, torch.Size] = {}
    for key, value in torchvision.models.get_model(name, weights=None).state_dict().items():
        parts = key.split(".")
        if parts[0] in ("layer1", "layer2", "layer3") and parts[2] == "bn1":
            prefix, entry, half = (
                ".".join(parts[:3]),
                parts[3],
                torch.Size([len(value) // 2]) if value.ndim else value.shape,
            )
            keys[f"{prefix}.BN.{entry}"] = half
            if entry in ("weight", "bias"):
                keys[f"{prefix}.IN.{entry}"] = half
        else:
            keys[key] = value.shape
    return keys


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_ibn__takes_published_state_dicts(name: str) -> None:
    keys = published_ibn_keys(name)
    state = {key: torch.rand(shape) for key, shape in keys.items()}
    backbone = build_backbone(f"{name}_ibn_a", state)
    torch.testing.assert_close(backbone.middle[0].bn1.IN.weight, state["layer2.0.bn1.IN.weight"])
    assert isinstance(backbone.last[0].bn1, nn.BatchNorm2d), "layer 4 stays as it is"
    own = [module for module in backbone.modules() if isinstance(module, InstanceBatchNorm)]
    assert len(own) == {"resnet18": 6, "resnet50": 13}[name]
    del state["layer1.0.bn1.IN.bias"]
    with pytest.raises(WeightsError, match=r"layer1\.0\.bn1\.IN\.bias"):
        build_backbone(f"{name}_ibn_a", state)
    with pytest.raises(WeightsError, match=f"{name}_ibn_a"):
        require_weights_for("imagenet", f"{name}_ibn_a")


def test_ibn__normalises_each_image_in_its_first_half() -> None:
    layer = InstanceBatchNorm(6).eval()
    features = torch.randn(2, 6, 5, 4) * 3 + 1
    out = layer(features)
    torch.testing.assert_close(out[:, :3].mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 3:], features[:, 3:] / (1 + layer.BN.eps) ** 0.5)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 4), ("resnet50_ibn_a", 5)])
def test_non_local__starts_as_the_plain_network(name: str, count: int) -> None:
    torch.manual_seed(0)
    state = torchvision.models.get_model(name.removesuffix("_ibn_a"), weights=None).state_dict()
    if name.endswith("_ibn_a"):
        state = {key: torch.rand(shape) for key, shape in published_ibn_keys("resnet50").items()}
    plain, extended = build_backbone(name, state).train(), build_backbone(name, state, non_local=True).train()
    blocks = [module for module in extended.modules() if isinstance(module, NonLocal)]
    assert len(blocks) == count
    assert extended.info == plain.info
    images = torch.randn(2, 3, 64, 32)
    for one, two in zip(tensors_of(plain(images)), tensors_of(extended(images)), strict=True):
        assert torch.equal(one, two)


def test_non_local__is_the_published_sum() -> None:
    torch.manual_seed(0)
    block = NonLocal(4).eval()
    nn.init.ones_(block.out[1].weight)
    features = torch.randn(1, 4, 3, 2)
    theta, phi, g = (layer(features)[0].flatten(1).T for layer in (block.theta, block.phi, block.g))
    attended = torch.stack([sum(w * v for w, v in zip((phi @ t).softmax(0), g, strict=True)) for t in theta])
    wanted = features + block.out(attended.T.reshape(1, 2, 3, 2))
    torch.testing.assert_close(block(features), wanted)


@pytest.mark.parametrize("prefix", ["module.encoder_q.", "base.", "backbone.", ""])
def test_person_weights__of_trainers_that_prefix_names(prefix: str) -> None:
    """LUPerson's ResNet-50 comes as a MoCo checkpoint, others under `base.` or `backbone.`."""
    source = torchvision.models.get_model("resnet50", weights=None).state_dict()
    entries = {key: value for key, value in source.items() if not key.startswith("fc.")}
    state = {prefix.removeprefix("module.") + key: value for key, value in entries.items()}
    if "encoder_q" in prefix:
        state |= {f"encoder_k.{key}": value + 1 for key, value in entries.items() if value.is_floating_point()}
        state["queue"] = torch.zeros(4)
    backbone = build_backbone("resnet50", state)
    torch.testing.assert_close(backbone.early[0].weight, source["conv1.weight"])
    torch.testing.assert_close(backbone.last[2].conv3.weight, source["layer4.2.conv3.weight"])

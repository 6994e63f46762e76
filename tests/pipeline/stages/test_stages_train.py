import numpy as np
import pytest
import torch
import torchvision

from pipeline.config import ModelConfig
from pipeline.datasets.images import write_image
from pipeline.datasets.registry import open_dataset
from pipeline.errors import ConfigError, DataError, FormatError, UserError, WeightsError
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.formats.masks import MaskFile
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.network import build_model
from pipeline.runtime.progress import SILENT
from pipeline.stages.sources import Sources
from pipeline.stages.train import Train, open_teacher

SMALL = ("model.backbone=resnet18", "model.weights=none", "model.height=64", "model.width=32", "train.device=cpu")


@pytest.fixture
def stage(configure):
    def make(*overrides):
        config = configure(*SMALL, *overrides)
        return Train(config, Sources(config, fingerprints={"masks": "m"}))

    return make


def check(stage, what):
    return next(check for check in stage.checks() if check.what == what).run()


def test_settings__checkpoint_to_start_from_replaces_weights(stage, tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"1")
    settings = stage(f"train.start={start}").settings()
    assert settings["train.start"] == "FILE"
    assert "model.weights" not in settings
    assert stage().settings()["model.weights"] == "none"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.backbone=timm:no_such_model"], "timm"),
        (["model.backbone=timm:resnet18", "model.weights=imagenet"], "imagenet"),
        (["model.weights=builtin"], "builtin"),
        (["model.weights={}/nowhere.pth"], "nowhere.pth"),
        (["model.weights={}/empty.pth"], "empty.pth"),
        (["model.weights={}/page.pth"], "page.pth"),
        (["model.weights={}/other.pth"], "other.pth"),
        (["train.start={}/page.pth"], "page.pth"),
    ],
)
def test_check_network__names_what_is_wrong(stage, tmp_path, overrides, part):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_bytes(b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError) as caught:
        check(stage(*(override.format(tmp_path) for override in overrides)), "network")
    assert part in str(caught.value)


def test_check_network__accepts_weights_of_the_backbone(stage, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    assert "resnet18" in check(stage(f"model.weights={path}"), "network")


def test_check_network__checkpoint_to_start_from_must_be_of_the_network(stage, tmp_path):
    model = ModelConfig(backbone="resnet18", weights="none", height=64, width=32)
    meta = CheckpointMeta(model=model, num_classes=2, thresholds=(0.5,) * 7, trained_on="csv:people")
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, build_model(model, 2), meta)
    assert "csv:people" in check(stage(f"train.start={path}"), "network")
    assert "csv:people" in check(stage(f"train.start={path}", "model.height=128"), "network")
    with pytest.raises(WeightsError, match=r"model\.part_dim = 256 instead of 64"):
        check(stage(f"train.start={path}", "model.part_dim=64"), "network")


def test_check_network__imagenet_weights_must_be_there_or_to_be_had(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(WeightsError, match="resnet18"):
        check(stage("model.weights=imagenet"), "network")
    url = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"].url
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rpartition("/")[2]).write_bytes(b"1")
    assert "cache" in check(stage("model.weights=imagenet"), "network")


def refuse(*_, **__):
    raise OSError("no route")


def test_check_batches__needs_enough_identities(stage):
    assert "2 identities" in check(stage(), "batches")
    with pytest.raises(UserError, match="2 identities"):
        check(stage("train.identities=3"), "batches")


@pytest.mark.parametrize(("override", "part"), [("train.amp=fp16", "fp16"), ("train.device=cuda", "cuda")])
def test_check_device__names_what_is_wrong(stage, monkeypatch, override, part):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=part):
        check(stage(override), "device")


def test_check_mask_file__must_have_some_of_the_images(stage, tmp_path, tiny_parser, people):
    from pipeline.config import MasksConfig
    from pipeline.masks.build import build_masks

    config = MasksConfig(parser=tiny_parser, device="cpu")
    path, names = tmp_path / "theirs.h5", ["images/1_c1.png", "images/1_c2.png"]
    build_masks(path, root=people.parent, names=names, config=config)
    assert check(stage(f"masks.file={path}"), "mask file") == "2 of 4 images"
    other = tmp_path / "others.h5"
    build_masks(other, root=people.parent / "images", names=["3_c1.png"], config=config)
    with pytest.raises(FormatError) as caught:
        check(stage(f"masks.file={other}"), "mask file")
    assert "images/1_c1.png" in caught.value.expected
    assert "3_c1.png" in caught.value.expected


@pytest.fixture
def rendered(people):
    """The data set of these tests in the layout of a rendered one."""
    root = people.parent
    (root / "dataset.csv").write_text(people.read_text())
    for image in (root / "images").iterdir():
        labels = np.zeros((32, 16), np.uint8)
        labels[2:8], labels[8:20] = 13, 5  # a face and upper clothes of LIP
        write_image(root / "labels" / "images" / image.name, labels)
    return root


def test_teacher__counts_by_its_images_and_label_maps(stage, rendered):
    taught = stage("train.mask_teacher=0.25", f"train.teacher_data=synthetic:{rendered}")
    before = taught.inputs()
    assert {"teacher images", "teacher label maps"} <= before.keys()
    assert taught.settings()["train.mask_teacher"] == 0.25
    assert "train.teacher_data" not in taught.settings()
    assert check(taught, "mask teacher").startswith("4 images")
    write_image(rendered / "labels" / "images" / "1_c1.png", np.full((32, 16), 5, np.uint8))
    after = stage("train.mask_teacher=0.25", f"train.teacher_data=synthetic:{rendered}").inputs()
    assert {name for name in before if before[name] != after[name]} == {"teacher label maps"}
    assert "teacher images" not in stage(f"train.teacher_data=synthetic:{rendered}").inputs()
    assert stage("train.mask_teacher=0.25").requires() == ("synth", "masks")


def test_teacher__needs_label_maps(stage, people):
    taught = stage("train.mask_teacher=0.25", f"train.teacher_data=csv:{people}")
    with pytest.raises(DataError, match="no label maps"):
        check(taught, "mask teacher")
    with pytest.raises(UserError, match="nowhere"):
        check(stage("train.mask_teacher=0.25", "train.teacher_data=synthetic:nowhere"), "mask teacher")


def test_teacher__masks_are_those_of_the_label_maps(tmp_path, rendered):
    teacher = open_teacher(open_dataset(f"synthetic:{rendered}", expect_counts=False), "spreid", SILENT)
    teacher.build_masks(tmp_path / "masks.h5")
    masks = MaskFile.open(tmp_path / "masks.h5")
    assert len(masks.names) == 4
    assert masks.parts[:, 0, 2].all(), "heads"
    assert not masks.parts[:, 2:].any(), "neither legs nor shoes"


def test_checks__missing_package_is_named(stage, monkeypatch):
    monkeypatch.setattr("pipeline.stages.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensorboard"):
        check(stage('train.loggers=["tensorboard"]'), "tensorboard")


def test_checks__rendered_images_do_not_exist_yet(stage):
    what = {each.what: each for each in stage("data.source=rendered").checks()}
    assert "batches" not in what
    assert "rendered" in what["training images"].run()

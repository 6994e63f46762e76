"""The checkpoint format: what is written comes back, and everything else is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.config import ModelConfig
from pipeline.errors import WeightsError
from pipeline.formats import checkpoint as checkpoint_module
from pipeline.formats.checkpoint import (
    CHECKPOINT_FORMAT,
    CheckpointMeta,
    read_checkpoint,
    read_meta,
    require_same_network,
    resolve_checkpoint,
    write_checkpoint,
)
from pipeline.formats.provenance import Provenance

META = CheckpointMeta(
    ModelConfig(backbone="mobilenet_v2", height=64, width=32, part_dim=16),
    num_classes=3,
    thresholds=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    trained_on="synthetic:people",
    identities="ab" * 32,
    epochs=5,
    seed=1,
    provenance=Provenance({"train.lr": 0.1, "train.schedule": "cosine", "images": "cd" * 32}),
    figures={"visibility_auc": {"head": 0.9}},
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weights = {"a": torch.arange(6.0).view(1, 2, 3, 1).to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    write_checkpoint(tmp_path / "model.safetensors", weights, META)
    return tmp_path / "model.safetensors"


def rewrite_header(path: Path, **changes: object) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sgsfa"])
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file(state, path, metadata={"sgsfa": json.dumps({**header, **changes})})


def test_round_trip__weights_and_header_are_equal(checkpoint: Path) -> None:
    weights, meta = read_checkpoint(checkpoint)
    assert meta == META
    assert weights["a"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert weights["n"].item() == 7


def test_write__equal_content_gives_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again.safetensors", *read_checkpoint(checkpoint))
    assert (tmp_path / "again.safetensors").read_bytes() == checkpoint.read_bytes()


def test_read__missing_damaged_and_foreign_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found") as caught:
        read_meta(tmp_path / "none.safetensors")
    assert caught.value.where == str(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(WeightsError, match="safetensors"):
        read_meta(damaged)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        read_meta(foreign)


@pytest.mark.parametrize("number", [0, 99])
def test_read__another_format_is_refused_with_the_version_that_wrote_it(checkpoint: Path, number: int) -> None:
    rewrite_header(checkpoint, format=number, version="7.8.9")
    with pytest.raises(WeightsError, match=f"format {number}") as caught:
        read_meta(checkpoint)
    assert f"format {CHECKPOINT_FORMAT}" in (caught.value.expected or "")
    assert "7.8.9" in (caught.value.hint or "")


@pytest.mark.parametrize("change", [{"model": {"backbone": 3}}, {"thresholds": None}, {"unknown": 1}])
def test_read__damaged_header_is_refused(checkpoint: Path, change: dict[str, object]) -> None:
    rewrite_header(checkpoint, **change)
    with pytest.raises(WeightsError, match="header"):
        read_meta(checkpoint)


def test_read__header_without_a_setting_has_its_default(checkpoint: Path) -> None:
    old = META.model.model_dump()
    del old["fit"]
    rewrite_header(checkpoint, model=old)
    assert read_meta(checkpoint).model.fit == "stretch"


def test_require_same_network__another_fit_is_allowed_and_another_shape_is_not(checkpoint: Path) -> None:
    require_same_network(checkpoint, META, META.model.model_copy(update={"fit": "pad"}))
    with pytest.raises(WeightsError, match="part_dim = 16 instead of 8"):
        require_same_network(checkpoint, META, META.model.model_copy(update={"part_dim": 8}))


def test_same_identities__needs_the_same_data_and_a_known_hash() -> None:
    assert META.same_identities(dataclasses.replace(META, epochs=1))
    assert not META.same_identities(dataclasses.replace(META, identities="ef" * 32))
    assert not META.same_identities(dataclasses.replace(META, trained_on="synthetic:others"))
    unknown = dataclasses.replace(META, identities="")
    assert not unknown.same_identities(unknown)


def test_resolve__builtin_is_the_file_of_the_package(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_checkpoint(str(checkpoint)) == checkpoint
    monkeypatch.setattr(checkpoint_module.resources, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="not found") as caught:
        resolve_checkpoint("builtin")
    (tmp_path / "reid").mkdir()
    (tmp_path / "reid" / "builtin.safetensors").touch()
    assert resolve_checkpoint(Path("builtin")) == Path(caught.value.where or "")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"", "0 bytes"),
        (bytes(100), "zero bytes"),
    ],
)
def test_read_meta__broken_download_is_named(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=fact):
        read_meta(tmp_path / "model.safetensors")


def test_read_meta__checkpoint_of_another_program_says_where_it_belongs(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "osnet.pth")
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("osnet.pth", "other.safetensors"):
        with pytest.raises(WeightsError) as caught:
            read_meta(tmp_path / name)
        assert "model.weights" in (caught.value.hint or "")

"""Weight files: every way in which a downloaded or copied file can be something else."""

from __future__ import annotations

import argparse
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.errors import WeightsError
from pipeline.formats.foreign import check_file, load_state_dict, sniff

TENSORS = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}


def torch_file(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(
    ("content", "kind", "fact"),
    [
        (b"", "empty", "0 bytes"),
        (bytes(5000), "zeros", "zero bytes"),
        (b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "html", "web page"),
        (b"\xef\xbb\xbf\n<html><head>", "html", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "lfs", "Git LFS"),
        (b'{"message": "Not Found"}', "text", "Not Found"),
        (b"\x1f\x8b\x08\x00" + bytes(9), "archive", "archive"),
        (b"PK\x03\x04" + bytes(300), "truncated", "truncated"),
        (pickle.dumps([1]), "pickle", "pickle"),
    ],
)
def test_sniff__tells_what_a_broken_download_is(tmp_path: Path, content: bytes, kind: str, fact: str) -> None:
    for name in ("w.pth", "w.safetensors", "w.onnx"):
        path = tmp_path / name
        path.write_bytes(content)
        assert sniff(path) == kind
        with pytest.raises(WeightsError, match=fact) as caught:
            load_state_dict(path)
        assert caught.value.where == str(path)


def test_sniff__knows_formats_whatever_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch_file(path, TENSORS)
    assert sniff(path) == "torch"
    torch_file(path, TENSORS, _use_new_zipfile_serialization=False)
    assert sniff(path) == "torch"
    safetensors.torch.save_file(TENSORS, path)
    assert sniff(path) == "safetensors"
    path.write_bytes(path.read_bytes()[:30])
    assert sniff(path) == "truncated"
    np.savez(path.with_suffix(".npz"), a=np.zeros(2))
    assert sniff(path.with_suffix(".npz")) == "numpy"
    path.unlink()
    with h5py.File(path, "w"):
        pass
    assert sniff(path) == "hdf5"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert sniff(path) == "zip"
    with tarfile.open(path, "w") as packed:
        packed.add(path.with_suffix(".npz"), "a")
    assert sniff(path) == "archive"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_load_state_dict__torchscript_program_is_named_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(WeightsError, match="TorchScript") as caught:
        load_state_dict(path)
    assert "torch.jit.load" in (caught.value.hint or "")
    assert "weights_only" not in str(caught.value)


def test_load_state_dict__unwraps_and_accepts_numpy_numbers(tmp_path: Path) -> None:
    wrapped = {
        "state_dict": {f"module.{name}": value for name, value in TENSORS.items()},
        "epoch": 60,
        "rank1": np.float64(0.9),
        "best": np.float32(0.5),
        "counts": np.arange(3),
        "flags": np.array([True]),
        "step": np.int64(7),
    }
    for zipped in (True, False):
        path = torch_file(tmp_path / "model.pth.tar-60", wrapped, _use_new_zipfile_serialization=zipped)
        loaded = load_state_dict(path)
        assert list(loaded) == ["a", "b"]
        assert torch.equal(loaded["a"], TENSORS["a"])


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict_ema": TENSORS, "epoch": 3},
        {"model": {"state_dict": TENSORS}},
        {"student": {"other": torch.ones(1)}, "teacher": TENSORS},
        {"network": TENSORS, "optimizer": {"state": {0: TENSORS}, "param_groups": []}},
        {name: value.numpy() for name, value in TENSORS.items()},
    ],
)
def test_load_state_dict__finds_the_only_network_of_a_checkpoint(tmp_path: Path, content: Any) -> None:
    loaded = load_state_dict(torch_file(tmp_path / "weights.pth", content))
    assert torch.equal(loaded["a"], TENSORS["a"])


def test_load_state_dict__several_networks_with_a_line_that_saves_one(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "weights.pth", {"generator": TENSORS, "critic": TENSORS})
    with pytest.raises(WeightsError, match="several networks: generator, critic") as caught:
        load_state_dict(path)
    line = (caught.value.hint or "").split('"')[1].replace("'weights.pth'", repr(str(tmp_path / "saved.pth")))
    exec(line, {})
    assert sorted(load_state_dict(tmp_path / "saved.pth")) == sorted(TENSORS)


def test_load_state_dict__arrays_of_text_are_no_tensors(tmp_path: Path) -> None:
    text = np.array(["person", "bag"])
    path = torch_file(tmp_path / "weights.pth", {**TENSORS, "classes": text})
    assert sorted(load_state_dict(path)) == sorted(TENSORS)
    with pytest.raises(WeightsError, match="no tensors but classes"):
        load_state_dict(torch_file(path, {"classes": text}))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_load_state_dict__quantised_or_not_finite_numbers_are_refused(tmp_path: Path) -> None:
    overflown = torch.tensor([1e9]).half()
    with pytest.raises(WeightsError, match="NaN or infinity in 'b'"):
        load_state_dict(torch_file(tmp_path / "weights.pth", {**TENSORS, "b": overflown}))
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match="quantised numbers in 'b'"):
        load_state_dict(torch_file(tmp_path / "weights.pth", {**TENSORS, "b": quantised}))


def test_load_state_dict__suffix_does_not_decide_the_format(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "weights.pth")
    torch_file(tmp_path / "weights.safetensors", TENSORS)
    for name in ("weights.pth", "weights.safetensors"):
        assert sorted(load_state_dict(tmp_path / name)) == ["a", "b"]


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_load_state_dict__refused_object_is_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    target, path = tmp_path / "exploded", tmp_path / "weights.pth"
    torch_file(path, {"state_dict": TENSORS, "bomb": Bomb(target)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"(posix|nt)\.system"):
        load_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [{"state_dict": TENSORS, "args": argparse.Namespace(lr=1)}, torch.nn.Linear(2, 2)])
def test_load_state_dict__line_that_saves_the_state_dict_works(tmp_path: Path, content: Any) -> None:
    path = torch_file(tmp_path / "weights.pth", content)
    with pytest.raises(WeightsError) as caught:
        load_state_dict(path)
    hint = caught.value.hint or ""
    assert str(path) in hint
    line = hint.split('"')[1].replace("'weights.pth'", repr(str(tmp_path / "saved.pth")))
    exec(line, {})
    assert load_state_dict(tmp_path / "saved.pth")


def test_load_state_dict__damage_is_reported_without_torchs_advice(tmp_path: Path) -> None:
    legacy = torch_file(tmp_path / "legacy.pth", TENSORS, _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(TENSORS, tmp_path / "cut.safetensors")
    for path in (legacy, tmp_path / "cut.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(WeightsError, match="damaged") as caught:
            load_state_dict(path)
        assert "weights_only" not in str(caught.value)


def test_load_state_dict__file_without_tensors_lists_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a list"):
        load_state_dict(torch_file(tmp_path / "list.pth", [1, 2]))
    with pytest.raises(WeightsError, match="epoch"):
        load_state_dict(torch_file(tmp_path / "empty.pth", {"epoch": 3}))


def test_check_file__missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not found"):
        check_file(tmp_path / "no.onnx", ["onnx"], title="ONNX model")
    with pytest.raises(WeightsError, match="folder"):
        check_file(tmp_path, ["onnx"], title="ONNX model")

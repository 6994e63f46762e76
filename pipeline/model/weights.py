"""Weights that a backbone starts from, read without ever unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.runtime.files import at_home


def load_backbone_weights(spec: str, backbone: str) -> Mapping[str, Tensor] | None:
    """The weights a backbone starts from.

    Args:
        spec: `imagenet` (torchvision's download or its cache), `builtin` (ImageNet weights in this package, for
            `mobilenet_v2`), `none`, or a file (.safetensors, .pth, .pt).
        backbone: Name of the backbone.

    Raises:
        WeightsError: No download, no such file, or a file that would have to be unpickled as code.
    """
    require_weights_for(spec, backbone)
    if spec == "none":
        return None
    if spec == "imagenet":
        return _imagenet(backbone)
    if spec == "builtin":
        return _builtin()
    return read_state_dict(at_home(spec))


def require_weights_for(spec: str, backbone: str) -> None:
    """See that named weights are of a backbone, without loading them.

    Raises:
        WeightsError: They are of another one.
    """
    if spec == "imagenet" and backbone.startswith("timm:"):
        raise WeightsError(
            f"`imagenet` is torchvision's; for {backbone} name a file",
            where="model.weights",
            hint="--weights FILE, or --weights none",
        )
    if spec == "builtin" and backbone != "mobilenet_v2":
        raise WeightsError(
            f"`builtin` has no weights for {backbone}", where="model.weights", expected="model.backbone = mobilenet_v2"
        )


def _imagenet(backbone: str) -> Mapping[str, Tensor]:
    weights = torchvision.models.get_model_weights(backbone)
    # V1 is what the published re-identification results start from.
    chosen = weights["IMAGENET1K_V1"]
    try:
        state: Mapping[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the ImageNet weights of {backbone} could not be downloaded: {error}",
            where=chosen.url,
            hint="fetch that file on a machine with internet and name it here: --weights FILE; or --weights none",
        ) from error
    return state


def _builtin() -> Mapping[str, Tensor]:
    """MobileNetV2's ImageNet weights, which lie in this package (`imagenet/card.md`)."""
    with resources.as_file(resources.files("pipeline.model") / "imagenet" / "mobilenet_v2.safetensors") as path:
        stored = read_state_dict(path)
    return {key: value.float() for key, value in stored.items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch file under `weights_only=True`.

    A `state_dict` entry and the prefix `module.` of DataParallel are taken off.

    Raises:
        WeightsError: The file is missing, damaged, holds no tensors, or asks for code to be run.
    """
    if not path.is_file():
        raise WeightsError("the weights file does not exist", where=path, expected="a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "the weights file asks for code to be run when it is opened, and was not opened",
            where=path,
            expected="tensors only, as torch.save(model.state_dict(), ...) or safetensors write them",
            hint="take it from a source you trust and save its state dict again",
        ) from error
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"the weights file cannot be read: {error}", where=path) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise WeightsError(f"the weights file holds a {type(content).__name__}", where=path, expected="a state dict")
    state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise WeightsError("the weights file holds no tensors", where=path, expected="a state dict")
    return state

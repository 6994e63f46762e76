"""Weights in and out, without ever unpickling code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import safetensors
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.errors import WeightsError
from pipeline.model.network import CENTRES, Network, build_model
from pipeline.runtime.files import at_home, atomic_write
from pipeline.version import __version__

CHECKPOINT_FORMAT = 4
"""4: the body mask has scaled logits and a wider view. 3: features without necks have centres. A network of
format 2 or 3 that has none of what changed is read as before. 2: the parts that were taught are named, and the head is
found by another rule, which a checkpoint's thresholds belong to; older ones are refused."""
_OLDEST = 2
_KEY = "sgsfa"
_CLASSIFIER = ".classify.weight"


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says of itself, in the header of its safetensors file.

    Attributes:
        model: The network's configuration.
        num_classes: Number of training identities.
        thresholds: tau of eq. 5 for the seven parts in the order of matching.
        trained_on: Name of the training data.
        epochs: Epochs trained.
        seed: Seed of the training.
        people: SHA-256 of the training images' names and identities: which people the classifiers know.
        started_from: What the checkpoint that training began with was trained on, and the beginning of that file's
            SHA-256; empty where it began with a backbone's weights.
        version: Version of the program that wrote it.
        format: Version of this header.
    """

    model: ModelConfig
    num_classes: int
    thresholds: tuple[float, ...]
    trained_on: str = ""
    epochs: int = 0
    seed: int = 0
    people: str = ""
    started_from: str = ""
    version: str = __version__
    format: int = CHECKPOINT_FORMAT

    def threshold_array(self) -> NDArray[np.float32]:
        """The thresholds tau as a (7,) float32 array."""
        return np.asarray(self.thresholds, dtype=np.float32)


def save_checkpoint(path: Path, model: nn.Module, meta: CheckpointMeta) -> None:
    """Write a network and its description as one safetensors file, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header = {**asdict(meta), "model": meta.model.model_dump(mode="json")}
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={_KEY: json.dumps(header)})


def load_checkpoint(path: Path) -> tuple[Network, CheckpointMeta]:
    """Read a network back, in evaluation mode, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, not one of ours, of a newer format, or does not fit the network
            that its header describes.
    """
    meta = read_meta(path)
    state = safetensors.torch.load_file(path)
    model = build_model(meta.model, meta.num_classes)
    own = model.state_dict()
    _refuse_other_tensors(path, meta, own, state)
    model.load_state_dict(state)
    return model.eval(), meta


def start_from(path: Path, network: Network, meta: CheckpointMeta) -> CheckpointMeta:
    """Fill a network that is about to be trained with the weights of a checkpoint.

    Its identity classifiers are taken over where it was trained on the same images of the same people, and are left as
    they are elsewhere. Which parts the masks can tell of (`SGSFA.trained_parts`) is a fact of the new data and stays
    with it; centres are measured at the end of a training.

    Args:
        path: The checkpoint.
        network: What to fill.
        meta: Of the training to come: model, identities, data.

    Returns:
        What the checkpoint says of itself.

    Raises:
        WeightsError: As `load_checkpoint`, or the checkpoint is of another network.
    """
    theirs = read_meta(path)
    mine, other = meta.model.model_dump(), theirs.model.model_dump()
    shaping = mine.keys() - {"weights", "height", "width"}
    differing = sorted(f"model.{key} = {other[key]}, not {mine[key]}" for key in shaping if mine[key] != other[key])
    if differing:
        raise WeightsError(
            f"the checkpoint to start from is of another network: {'; '.join(differing)}",
            where=path,
            expected="one that was trained with the same [model]; weights, height and width may differ",
        )
    state = safetensors.torch.load_file(path)
    own = network.state_dict()
    left = {"trained_parts", *CENTRES} & own.keys()
    if not knows_people(theirs, meta):
        left |= {name for name in own if name.endswith(_CLASSIFIER)}
    _refuse_other_tensors(
        path,
        theirs,
        {name: value for name, value in own.items() if name not in left},
        {name: value for name, value in state.items() if name not in {*left, *CENTRES}},
    )
    network.load_state_dict({name: own[name] if name in left else state[name] for name in own})
    return theirs


def knows_people(theirs: CheckpointMeta, meta: CheckpointMeta) -> bool:
    """Whether the classifiers of a checkpoint are of the people that a training will see."""
    return bool(meta.people) and (theirs.people, theirs.trained_on) == (meta.people, meta.trained_on)


def _refuse_other_tensors(
    path: Path, meta: CheckpointMeta, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    lacking = sorted(own.keys() - state.keys())
    if meta.format < CHECKPOINT_FORMAT and lacking:
        raise WeightsError(
            f"the checkpoint has format {meta.format}; its network needs {lacking[0]!r} now",
            where=path,
            hint=f"it was written by version {meta.version}; train it anew",
        )
    different = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if different:
        raise WeightsError(
            f"the checkpoint's weights are of another shape than its header says: {different[0]!r} differs",
            where=path,
            hint="it was changed after it was written; train or fetch it again",
        )


def read_meta(path: Path) -> CheckpointMeta:
    """The description in a checkpoint's header, without reading its weights.

    Raises:
        WeightsError: As `load_checkpoint`.
    """
    if not path.is_file():
        raise WeightsError(
            "the checkpoint does not exist", where=path, hint="`sgsfa train` makes one: model.safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"the checkpoint cannot be read as safetensors: {error}", where=path, expected="a model.safetensors of ours"
        ) from error
    if _KEY not in metadata:
        raise WeightsError(
            "these weights are not a checkpoint of this program",
            where=path,
            expected="a model.safetensors written by `sgsfa train`",
            hint="weights for starting the backbone are named by --weights",
        )
    header: dict[str, Any] = json.loads(metadata[_KEY])
    found = int(header.get("format", 0))
    if not _OLDEST <= found <= CHECKPOINT_FORMAT:
        mend = "update sgsfa" if found > CHECKPOINT_FORMAT else "train it anew"
        raise WeightsError(
            f"the checkpoint has format {found}, this program reads {_OLDEST} to {CHECKPOINT_FORMAT}",
            where=path,
            hint=f"it was written by version {header.get('version')}; {mend}",
        )
    try:
        model = ModelConfig.model_validate(header.pop("model"))
        return CheckpointMeta(model=model, **{**header, "thresholds": tuple(header["thresholds"])})
    except (ValidationError, KeyError, TypeError) as error:
        raise WeightsError(f"the checkpoint's header is damaged: {error}", where=path) from error


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

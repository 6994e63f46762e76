"""Checkpoints: one safetensors file with the weights of a trained network and, in its header, what they are.

The header is JSON under the metadata key `sgsfa`; nothing in the file can run code when it is read.
`pipeline.model.checkpoint` turns a checkpoint into a network. Headers are read without PyTorch, so that plans are
made quickly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from pipeline.config import ModelConfig
from pipeline.errors import WeightsError
from pipeline.formats.foreign import check_file
from pipeline.formats.provenance import Provenance
from pipeline.runtime.files import atomic_write
from pipeline.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FORMAT = 1
BUILTIN = "builtin"
"""Name of the checkpoint in this package."""

_KEY = "sgsfa"
_EXPECTED = "a model.safetensors of a training"
_BACKBONE = "weights of other programs start the backbone of a training: set model.weights to them"


@dataclass(frozen=True)
class CheckpointMeta:
    """The header of a checkpoint.

    Attributes:
        model: Configuration of the network.
        num_classes: Number of training identities.
        thresholds: Visibility thresholds tau (eq. 5) of the seven parts, in the order of `pipeline.parts.PARTS`.
        trained_on: Name of the training data.
        identities: SHA-256 of the names and identities of the training images: what the classifiers distinguish.
        epochs: Epochs trained.
        seed: Seed of the training.
        started_from: Training data and hash prefix of the checkpoint that training started from; empty without one.
        provenance: Settings and input fingerprints that decided the training: model, loss, schedule, data.
        figures: Measured figures by name, such as the visibility ROC AUC of each part.
        version: Version of the program that wrote the file.
    """

    model: ModelConfig
    num_classes: int
    thresholds: tuple[float, ...]
    trained_on: str = ""
    identities: str = ""
    epochs: int = 0
    seed: int = 0
    started_from: str = ""
    provenance: Provenance = field(default_factory=lambda: Provenance({}))
    figures: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def same_identities(self, other: CheckpointMeta) -> bool:
        """Return whether both were trained on the same images of the same identities."""
        return bool(self.identities) and (self.identities, self.trained_on) == (other.identities, other.trained_on)


_NOT_SHAPING = {"weights", "height", "width", "fit", "logit_scale"}
"""Settings of a network that may differ from those of the checkpoint it starts from."""


def require_same_network(path: Path, meta: CheckpointMeta, model: ModelConfig) -> None:
    """Check that a training of `model` can start from a checkpoint; raises `WeightsError` with what differs."""
    old, new = meta.model.model_dump(), model.model_dump()
    differing = [key for key in new if key not in _NOT_SHAPING and old[key] != new[key]]
    if differing:
        values = ", ".join(f"model.{key} = {old[key]} instead of {new[key]}" for key in differing)
        raise WeightsError(
            f"the checkpoint to start from has another network: {values}",
            where=path,
            expected="the same [model] settings; weights, height, width, fit and logit_scale may differ",
        )


def resolve_checkpoint(name: str | Path) -> Path:
    """Return the file of a checkpoint: a path, or `builtin` for the one in this package.

    Raises:
        WeightsError: The file does not exist.
    """
    path = Path(name)
    if str(name) == BUILTIN:
        path = Path(str(resources.files("pipeline.model"))) / "reid" / "builtin.safetensors"
    if not path.is_file():
        raise WeightsError("checkpoint not found", where=path, expected=_EXPECTED)
    return path


def write_checkpoint(path: Path, weights: Mapping[str, Tensor], meta: CheckpointMeta) -> None:
    """Write a checkpoint atomically: the network's state dict, on any device, and its header."""
    import safetensors.torch

    header = {each.name: getattr(meta, each.name) for each in fields(meta)}
    header["model"] = meta.model.model_dump(mode="json")
    header["provenance"] = dict(meta.provenance.values)
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    text = json.dumps({"format": CHECKPOINT_FORMAT, **header})
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={_KEY: text})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointMeta]:
    """Read the weights of a checkpoint, on the CPU, and its header; raises `WeightsError` as `read_meta`."""
    import safetensors.torch

    meta = read_meta(path)
    return safetensors.torch.load_file(path), meta


def read_meta(path: Path) -> CheckpointMeta:
    """Read the header of a checkpoint, without its weights.

    Raises:
        WeightsError: The file is missing, damaged, not a checkpoint, or of another format.
    """
    check_file(path, ["safetensors"], title="checkpoint", expected=_EXPECTED, hint=_BACKBONE)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        if _KEY not in metadata:
            raise WeightsError("not a checkpoint of this program", where=path, expected=_EXPECTED, hint=_BACKBONE)
        header: dict[str, Any] = dict(json.loads(metadata[_KEY]))
        if (found := header.pop("format", 0)) != CHECKPOINT_FORMAT:
            raise WeightsError(
                f"checkpoint has format {found}",
                where=path,
                expected=f"format {CHECKPOINT_FORMAT}",
                hint=f"it was written by version {header.get('version')}, this is version {__version__}",
            )
        header["model"] = ModelConfig.model_validate(header["model"])
        header["provenance"] = Provenance(header["provenance"])
        header["thresholds"] = tuple(header["thresholds"])
        return CheckpointMeta(**header)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError("the checkpoint is damaged", where=path, expected=_EXPECTED, cause=error) from error

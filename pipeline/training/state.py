"""The resumable state of a training: one safetensors file of tensors with a JSON header.

Weights, optimiser moments and averaged weights are tensors; all else is in the header, so that a state is complete or
absent. Learning rate, batches, augmentation and the global random generators are functions of the seed and the step
(`schedule`, `sampler`, `plan`) and need no saving.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ArtifactError, WeightsError
from pipeline.formats.provenance import Provenance
from pipeline.formats.resume import START_OVER, conflict
from pipeline.model.backbone import strip_prefix
from pipeline.runtime.files import atomic_write
from pipeline.training.ema import ModelEma

_FORMAT = 1
_KEY = "sgsfa-training"


@dataclass(frozen=True)
class TrainState:
    """The part of a state that is not a tensor.

    Attributes:
        step: Steps done.
        provenance: What decides the result of the training.
        scaler: State of the fp16 loss scaler; empty without one.
        best: Epoch and mAP of the best evaluation; None before the first.
        seconds: Time spent in steps.
        evaluation_due: The run stopped before or during the evaluation after this step.
    """

    step: int
    provenance: Provenance
    scaler: dict[str, Any] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    seconds: float = 0.0
    evaluation_due: bool = False


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma | None, state: TrainState
) -> None:
    """Write a state atomically.

    Raises:
        ArtifactError: The file cannot be written (the disk is full).
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    if ema is not None:
        tensors |= {f"ema.{name}": value for name, value in ema.network.state_dict().items()}
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = json.dumps({**vars(state), "provenance": dict(state.provenance.values), "format": _FORMAT})
    try:
        with atomic_write(path) as temporary:
            safetensors.torch.save_file(flat, temporary, metadata={_KEY: header})
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"cannot save the training state: {error}", where=path) from error


def load_state(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEma | None,
    provenance: Provenance,
) -> TrainState:
    """Copy a saved state into a network, its optimiser and its average, in place.

    Args:
        path: A file of `save_state`.
        network: On its device.
        optimizer: Over the parameters of the network.
        ema: The averaged network, if the training has one.
        provenance: Of this training.

    Returns:
        The part of the state that is not a tensor.

    Raises:
        FormatError: It was created with other settings or data.
        WeightsError: The file is damaged, or not a training state.
    """
    state = read_state(path)
    if error := conflict("training state", path, state.provenance, provenance):
        raise error
    tensors = safetensors.torch.load_file(path)
    _fill(path, network.state_dict(), strip_prefix(tensors, "network."))
    if ema is not None:
        _fill(path, ema.network.state_dict(), strip_prefix(tensors, "ema."))
    for name, parameter in network.named_parameters():
        moments = strip_prefix(tensors, f"optimizer.{name}.")
        if moments := {key: value for key, value in moments.items() if "." not in key}:
            optimizer.state[parameter] = {key: _like(value, parameter) for key, value in moments.items()}
    return state


def read_state(path: Path) -> TrainState:
    """Read the header of a state.

    Raises:
        WeightsError: The file is damaged or not a training state.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
        if (found := header.pop("format")) != _FORMAT:
            raise WeightsError(f"training state has format {found}", where=path, expected=f"format {_FORMAT}")
        header["provenance"] = Provenance(header["provenance"])
        header["best"] = None if header["best"] is None else tuple(header["best"])
        return TrainState(**header)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"not a training state: {error}", where=path, hint=START_OVER) from error


def _fill(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    different = sorted(own.keys() ^ stored.keys()) or sorted(n for n in own if own[n].shape != stored[n].shape)
    if different:
        raise WeightsError(
            f"training state is of another network: {different[0]!r} differs", where=path, hint=START_OVER
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """An optimiser's tensor on its parameter's device and in its memory layout, which decides how sums round."""
    if value.ndim == 0:
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)

"""The resumable state of a training run: one safetensors file, tensors and a JSON header, never a pickle.

Weights, optimiser moments and averaged weights are tensors; the step, the loss scaler and the configuration are JSON
in the header of the same file, so that a state is whole or not there. Learning rate, batches, augmentation and the
global generators are functions of the seed and the step (`schedule.py`, `sampler.py`, `loop.py`) and need no saving.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ArtifactError, WeightsError
from pipeline.runtime.files import atomic_write
from pipeline.training.ema import Average

FORMAT = 1
_KEY = "sgsfa-training"


@dataclass(frozen=True)
class Facts:
    """The part of a state that is no tensor.

    Attributes:
        step: Steps done.
        identity: What must be the same for a state to be taken up: configuration, classes, images; flat, by dotted key.
        scaler: State of the fp16 loss scaler; empty without one.
        best: Best evaluation so far: epoch and mAP; None before the first.
        seconds: Time spent in steps so far.
        untested: Whether the evaluation that is due after the last step is still to come: a stop fell into it.
    """

    step: int
    identity: dict[str, Any]
    scaler: dict[str, Any]
    best: tuple[int, float] | None = None
    seconds: float = 0.0
    untested: bool = False


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, facts: Facts
) -> None:
    """Write the state, whole or not at all.

    Raises:
        ArtifactError: It cannot be written (the disk is full).
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.model.state_dict().items()}
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": FORMAT,
        "step": facts.step,
        "identity": facts.identity,
        "scaler": facts.scaler,
        "best": facts.best,
        "seconds": facts.seconds,
        "untested": facts.untested,
    }
    try:
        with atomic_write(path) as temporary:
            safetensors.torch.save_file(flat, temporary, metadata={_KEY: json.dumps(header)})
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"the training state cannot be saved: {error}", where=path, hint="is the disk full?"
        ) from error


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    identity: Mapping[str, Any],
) -> Facts:
    """Put a saved state into a model, its optimiser and its average.

    Args:
        path: File of `save_state`.
        model: On its device; its parameters are overwritten in place.
        optimizer: Over the parameters of `model`.
        average: The averaged model, where the run has one.
        identity: What the state must say of itself.

    Returns:
        The rest of the state.

    Raises:
        WeightsError: The file is damaged, no state of ours, or of another configuration, model or data.
    """
    header = _read_header(path)
    _check_identity(path, header["identity"], identity)
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"the training state cannot be read: {error}", where=path, hint=_AGAIN) from error
    _fill(path, model.state_dict(), _under(tensors, "model."))
    if average is not None:
        _fill(path, average.model.state_dict(), _under(tensors, "average."))
    moments = _under(tensors, "optimizer.")
    for name, parameter in model.named_parameters():
        own = {key.removeprefix(f"{name}."): value for key, value in moments.items() if key.startswith(f"{name}.")}
        own = {key: value for key, value in own.items() if "." not in key}
        if own:
            optimizer.state[parameter] = {key: _like(path, key, value, parameter) for key, value in own.items()}
    best = header["best"]
    return Facts(
        step=int(header["step"]),
        identity=dict(identity),
        scaler=header["scaler"],
        best=None if best is None else (int(best[0]), float(best[1])),
        seconds=float(header["seconds"]),
        # States of before there was such a stop have no word of it.
        untested=bool(header.get("untested", False)),
    )


_AGAIN = "delete it to train from the start"


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        header: dict[str, Any] = json.loads(metadata[_KEY])
        if header["format"] != FORMAT:
            raise WeightsError(f"the training state has format {header['format']}", where=path, expected=str(FORMAT))
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"this is not a training state of ours: {error}",
            where=path,
            expected="a safetensors file written by `sgsfa train`",
            hint=_AGAIN,
        ) from error
    return header


def _check_identity(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # Through JSON, so that a tuple and the list it became compare equal.
    now = json.loads(json.dumps(dict(wanted)))
    differing = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
    if differing:
        raise WeightsError(
            f"the training state is of another run: it differs in {', '.join(differing)}",
            where=path,
            expected="the same configuration and data as when it was saved",
            hint=_AGAIN,
        )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fill(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    different = sorted(set(own) ^ set(stored)) or sorted(n for n in own if own[n].shape != stored[n].shape)
    if different:
        raise WeightsError(
            f"the training state is of another network: {different[0]!r} differs in {len(different)} tensors",
            where=path,
            hint=_AGAIN,
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def _like(path: Path, key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """An optimiser's tensor on its parameter's device and in its memory layout, which decides how sums round."""
    if value.ndim == 0:
        return value.to(parameter.device)
    if value.shape != parameter.shape:
        raise WeightsError(f"the training state is of another network: {key!r} differs", where=path, hint=_AGAIN)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)

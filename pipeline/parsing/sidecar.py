"""What a model file does not say about itself: the TOML file beside an ONNX or TorchScript model.

`model.onnx.toml` describes `model.onnx`. Every key has a default; only the label set must be told, here or by the
configuration's `masks.label_set`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.config import read_toml, suggestion
from pipeline.errors import ConfigError, FormatError
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.interface import Fit
from pipeline.parsing.labels import LabelSet, load_label_set

Triple = tuple[float, float, float]


class Sidecar(BaseModel):
    """How to feed a model and how to read its output."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_set: str | None = Field(None, description="A name, or a TOML file relative to this one.")
    version: str = Field("1", description="Recorded in mask files.")
    height: int | None = Field(None, ge=8, description="Input height; not needed where the model fixes it.")
    width: int | None = Field(None, ge=8, description="Input width, likewise.")
    fit: Fit = Field(
        "stretch", description="stretch: resize straight to it. square: own proportions on a black square."
    )
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Order of the input's axes.")
    colour: Literal["rgb", "bgr"] = Field("rgb", description="Order of the input's channels.")
    scale: float = Field(255.0, gt=0, description="Pixel values are divided by this first.")
    mean: Triple = Field((0.485, 0.456, 0.406), description="Then this is subtracted, in the order R, G, B.")
    std: Triple = Field((0.229, 0.224, 0.225), description="Then they are divided by this, in the order R, G, B.")
    output: str | None = Field(None, description="Name of the output to use; the first one by default (ONNX only).")
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        "softmax", description="Turns scores into probabilities; none: they are probabilities. Unused for label ids."
    )
    trust: bool = Field(False, description="TorchScript only: yes, run the program in this file.")


def read_sidecar(model: Path) -> Sidecar:
    """Read the description of a model, or take the defaults where there is none.

    Raises:
        ConfigError: The file is wrong.
    """
    path = sidecar_path(model)
    if not path.is_file():
        return Sidecar()
    table = read_toml(path, "the description of the model")
    for key in table:
        if key not in Sidecar.model_fields:
            known = tuple(Sidecar.model_fields)
            raise ConfigError(
                f"unknown key {key!r}", where=path, expected=", ".join(known), hint=suggestion(key, known)
            )
    try:
        return Sidecar.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(
            f"{key} = {first['input']!r}: {first['msg']}", where=path, expected=Sidecar.model_fields[key].description
        ) from error


def label_set_of(sidecar: Sidecar, model: Path, option: str | None) -> LabelSet:
    """The label set of a model: the option's, else the sidecar's.

    Raises:
        ConfigError: Neither names one.
    """
    if option is not None:
        return load_label_set(option)
    if sidecar.label_set is None:
        raise ConfigError(
            "nothing says what the labels of this model mean",
            where=model,
            expected=f'label_set = "..." in {sidecar_path(model).name}, or the option --label-set',
            hint="`sgsfa masks labels` lists the known sets",
        )
    if sidecar.label_set.endswith(".toml"):
        return load_label_set(str(model.parent / sidecar.label_set))
    return load_label_set(sidecar.label_set)


def input_size_of(sidecar: Sidecar, model: Path, fixed: tuple[int | None, int | None]) -> tuple[int, int]:
    """Height and width to feed: what the model fixes, else what the sidecar says.

    Raises:
        ConfigError: Neither tells, or they contradict each other.
    """
    sizes = []
    for name, told, own in (("height", sidecar.height, fixed[0]), ("width", sidecar.width, fixed[1])):
        if told is not None and own is not None and told != own:
            raise ConfigError(f"{name} = {told}, but the model's input has {own}", where=sidecar_path(model))
        size = own if own is not None else told
        if size is None:
            raise ConfigError(
                f"the model takes any {name}",
                where=model,
                expected=f"{name} = ... in {sidecar_path(model).name}: what it was trained with",
            )
        sizes.append(size)
    return sizes[0], sizes[1]


def to_input(images: Tensor | np.ndarray, sidecar: Sidecar, device: torch.device) -> Tensor:
    """Bring uint8 RGB (B, H, W, 3) into the form that the model wants, as float32."""
    values = torch.as_tensor(images).to(device).float() / sidecar.scale
    values = (values - torch.tensor(sidecar.mean, device=device)) / torch.tensor(sidecar.std, device=device)
    if sidecar.colour == "bgr":
        values = values.flip(3)
    if sidecar.layout == "nchw":
        values = values.permute(0, 3, 1, 2)
    return values.contiguous()


def to_soft(output: Tensor, sidecar: Sidecar, label_set: LabelSet, model: Path) -> Tensor:
    """Turn a model's output into soft labels (B, C, h, w).

    Args:
        output: Scores or probabilities (B, C, h, w), or label ids (B, h, w) or (B, 1, h, w).
        sidecar: The model's description.
        label_set: What its labels mean.
        model: The model's file, named in errors.

    Raises:
        FormatError: The output is none of these.
    """
    ids = not output.is_floating_point()
    if ids and output.ndim == 4 and output.shape[1] == 1:
        output = output[:, 0]
    if ids and output.ndim == 3:
        if int(output.min()) < 0 or int(output.max()) >= label_set.count:
            raise FormatError(
                f"the model gives label ids from {int(output.min())} to {int(output.max())}",
                where=model,
                expected=f"0 to {label_set.count - 1} ({label_set.name})",
            )
        return torch.nn.functional.one_hot(output.long(), label_set.count).permute(0, 3, 1, 2).float()
    if output.ndim != 4 or output.shape[1] != label_set.count or ids:
        raise FormatError(
            f"the model's output has shape {tuple(output.shape)} and type {output.dtype}",
            where=model,
            expected=f"(B, {label_set.count}, h, w) scores of {label_set.name}, or whole-numbered label ids (B, h, w)",
            hint="name the right output or label set in the TOML file beside the model",
        )
    scores = output.float()
    if sidecar.activation == "softmax":
        return scores.softmax(dim=1)
    return scores.sigmoid() if sidecar.activation == "sigmoid" else scores

"""The description of an ONNX model: a TOML file beside it.

`model.onnx.toml` describes `model.onnx`. Every key has a default except the label set, which is stated here or in the
configuration (`masks.label_set`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.config_file import read_toml
from pipeline.errors import ConfigError, FormatError
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.interface import Fit
from pipeline.parsing.labels import LabelSet, label_set_names, load_label_set, refuse_unknown

Triple = tuple[float, float, float]


class Sidecar(BaseModel):
    """Input and output conventions of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_set: str | None = Field(None, description="A name, or a TOML file relative to this one.")
    version: str = Field("1", description="Recorded in mask files.")
    height: int | None = Field(None, ge=8, description="Input height in pixels; not needed if the model fixes it.")
    width: int | None = Field(None, ge=8, description="Input width in pixels; likewise.")
    fit: Fit = Field(
        "stretch",
        description="stretch: resize to the input size. pad: pad truncated crops, as with `model.fit = pad`. square: "
        "keep proportions, on a black square.",
    )
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Order of the input's axes.")
    colour: Literal["rgb", "bgr"] = Field("rgb", description="Order of the input's channels.")
    scale: float = Field(255.0, gt=0, description="Pixel values are divided by this first.")
    mean: Triple = Field((0.485, 0.456, 0.406), description="Then this is subtracted, in the order R, G, B.")
    std: Triple = Field((0.229, 0.224, 0.225), description="Then they are divided by this, in the order R, G, B.")
    output: str | None = Field(None, description="Name of the output to use; by default the first one.")
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        "softmax", description="Turns scores into probabilities; none: they are probabilities. Unused for label ids."
    )


def read_sidecar(model: Path) -> Sidecar:
    """Read the description of a model; without one, return the defaults.

    Raises:
        ConfigError: The file is not valid.
    """
    path = sidecar_path(model)
    if not path.is_file():
        return Sidecar()
    table = read_toml(path, "the description of the model")
    refuse_unknown(table, tuple(Sidecar.model_fields), path)
    try:
        return Sidecar.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ConfigError(
            f"{key} = {first['input']!r}: {first['msg']}", where=path, expected=Sidecar.model_fields[key].description
        ) from error


def label_set_of(sidecar: Sidecar, model: Path, option: str | None) -> LabelSet:
    """Return the label set of a model: the configured one, else that of its description.

    Raises:
        ConfigError: Neither states one.
    """
    if option is not None:
        return load_label_set(option)
    if sidecar.label_set is None:
        raise ConfigError(
            "no label set for this model",
            where=model,
            expected=f'masks.label_set, or label_set = "..." in {sidecar_path(model).name}',
            hint=f"known sets: {', '.join(label_set_names())}",
        )
    if sidecar.label_set.endswith(".toml"):
        return load_label_set(str(model.parent / sidecar.label_set))
    return load_label_set(sidecar.label_set)


def input_size_of(sidecar: Sidecar, model: Path, fixed: tuple[int | None, int | None]) -> tuple[int, int]:
    """Return height and width of the input: fixed by the model, else stated in its description.

    Raises:
        ConfigError: Neither is the case, or they contradict each other.
    """
    sizes = []
    for name, stated, own in (("height", sidecar.height, fixed[0]), ("width", sidecar.width, fixed[1])):
        if stated is not None and own is not None and stated != own:
            raise ConfigError(f"{name} = {stated}, but the model's input has {own}", where=sidecar_path(model))
        size = own if own is not None else stated
        if size is None:
            raise ConfigError(
                f"the model accepts any {name}",
                where=model,
                expected=f"{name} = ... in {sidecar_path(model).name}, as in its training",
            )
        sizes.append(size)
    return sizes[0], sizes[1]


def to_input(images: Tensor | np.ndarray, sidecar: Sidecar) -> Tensor:
    """Convert uint8 RGB (B, H, W, 3) to the model's input layout, as normalised float32 on the CPU."""
    values = torch.as_tensor(images).cpu().float() / sidecar.scale
    values = (values - torch.tensor(sidecar.mean)) / torch.tensor(sidecar.std)
    if sidecar.colour == "bgr":
        values = values.flip(3)
    if sidecar.layout == "nchw":
        values = values.permute(0, 3, 1, 2)
    return values.contiguous()


def to_soft(output: Tensor, sidecar: Sidecar, label_set: LabelSet, model: Path, *, hint: str | None = None) -> Tensor:
    """Convert a model's output to soft labels (B, C, h, w).

    The output is scores or probabilities (B, C, h, w), or label ids (B, h, w) or (B, 1, h, w); `hint` is for the error
    about another kind.

    Raises:
        FormatError: The output is none of these.
    """
    ids = not output.is_floating_point()
    if ids and output.ndim == 4 and output.shape[1] == 1:
        output = output[:, 0]
    if ids and output.ndim == 3:
        if int(output.min()) < 0 or int(output.max()) >= label_set.count:
            raise FormatError(
                f"the model returns label ids from {int(output.min())} to {int(output.max())}",
                where=model,
                expected=f"0 to {label_set.count - 1} ({label_set.name})",
            )
        return torch.nn.functional.one_hot(output.long(), label_set.count).permute(0, 3, 1, 2).float()
    if output.ndim != 4 or output.shape[1] != label_set.count or ids:
        raise FormatError(
            f"the model's output has shape {tuple(output.shape)} and type {output.dtype}",
            where=model,
            expected=f"(B, {label_set.count}, h, w) scores of {label_set.name}, or integer label ids (B, h, w)",
            hint=hint or f"set label_set in {sidecar_path(model).name} to the labels of this model",
        )
    scores = output.float()
    if sidecar.activation == "softmax":
        return scores.softmax(dim=1)
    return scores.sigmoid() if sidecar.activation == "sigmoid" else scores

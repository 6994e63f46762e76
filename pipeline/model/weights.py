"""Weights that a backbone starts from, read without ever unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from urllib.error import URLError

import torchvision
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.formats.checkpoint import BUILTIN, read_checkpoint, resolve_checkpoint
from pipeline.formats.foreign import load_state_dict
from pipeline.model.backbone import IBN_SUFFIX
from pipeline.runtime.files import at_home


def load_backbone_weights(spec: str, backbone: str) -> Mapping[str, Tensor] | None:
    """Return the weights that a backbone starts from.

    Args:
        spec: `imagenet` (torchvision's download or its cache), `builtin` (ImageNet weights in this package, for
            `mobilenet_v2`), `rendered` (those of the built-in re-ID network, likewise), `none`, or a file
            (.safetensors, .pth, .pt).
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
        with resources.as_file(resources.files("pipeline.model") / "imagenet" / "mobilenet_v2.safetensors") as path:
            return {key: value.float() for key, value in load_state_dict(path).items()}
    if spec == "rendered":
        state, _ = read_checkpoint(resolve_checkpoint(BUILTIN))
        # The stages are slices of torchvision's `features` and keep its numbers.
        entries = (name.split(".", 2) for name in state if name.startswith("backbone."))
        return {f"features.{rest}": state[f"backbone.{stage}.{rest}"].float() for _, stage, rest in entries}
    return load_state_dict(at_home(spec))


def require_weights_for(spec: str, backbone: str) -> None:
    """Check that named weights are of a backbone, without loading them.

    Raises:
        WeightsError: They are of another one.
    """
    if spec == "imagenet" and (backbone.startswith("timm:") or backbone.endswith(IBN_SUFFIX)):
        raise WeightsError(
            f"`imagenet` has no weights for {backbone}",
            where="model.weights",
            expected="a file with its published weights, or none",
        )
    if spec in ("builtin", "rendered") and backbone != "mobilenet_v2":
        raise WeightsError(
            f"`{spec}` has no weights for {backbone}", where="model.weights", expected="model.backbone = mobilenet_v2"
        )


def _imagenet(backbone: str) -> Mapping[str, Tensor]:
    weights = torchvision.models.get_model_weights(backbone)
    # V1 is what the published re-identification results start from.
    chosen = weights["IMAGENET1K_V1"]
    try:
        state: Mapping[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the ImageNet weights of {backbone} cannot be downloaded",
            where=chosen.url,
            hint="download that file on a machine with internet and set model.weights to it, or to none",
            cause=error,
        ) from error
    return state

"""Checks that several stages share."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import Precision
from pipeline.errors import ArtifactError, ConfigError, WeightsError
from pipeline.runtime.process_group import rank_info

_MARGIN = 1.1
_TIMEOUT = 10.0


def check_device(name: str, amp: Precision = "off", *, distributed: bool = False) -> str:
    """Check that a device exists, for every rank if `distributed`, and computes in a precision.

    Raises:
        DeviceError: It does not.
    """
    from pipeline.runtime.device import autocast, device_label, resolve_device

    device = resolve_device(name)
    if distributed:
        device = rank_info().device(device)
    autocast(device, amp)
    return device_label(device) + (f", {amp}" if amp != "off" else "")


def check_package(module: str, extra: str, key: str) -> str:
    """Check that an optional package is installed; raises `ConfigError` if it is not."""
    if find_spec(module) is None:
        raise ConfigError(f"{key} needs the package {module}", where=key, hint=f"pip install 'sgsfa[{extra}]'")
    return "installed"


def check_disk(root: Path, size: int) -> str:
    """Check that the disk of the artifacts has room for what a run will write; raises `ArtifactError` if it has not."""
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
    if free < size * _MARGIN:
        raise ArtifactError(
            f"not enough disk space: about {text}", where=root, hint="free some space, or set artifacts to another disk"
        )
    return text


def find_imagenet(backbone: str) -> str:
    """Check that the ImageNet weights of a backbone are in torchvision's cache or can be downloaded.

    Raises:
        WeightsError: Neither.
    """
    import urllib.request

    import torch
    import torchvision

    url: str = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"].url
    if (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file():
        return "ImageNet weights in the cache"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT):
            return "ImageNet weights to be downloaded"
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"ImageNet weights of {backbone} cannot be downloaded: {getattr(error, 'reason', error)}",
            where=url,
            hint="set model.weights to a copy of that file, or to none",
        ) from error

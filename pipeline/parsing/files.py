"""What identifies a parser: all files that are read when it is loaded, and the versions of those in this package.

Separate from the back ends, because the fingerprint of masks must not import PyTorch. ONNX models have their
version in the TOML file beside them; parsers of other packages state their own.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path, PurePosixPath

from pipeline.config_file import read_toml
from pipeline.errors import ConfigError
from pipeline.runtime.files import sha256_bytes, sha256_file

BUILTIN_VERSION = "6"
"""Raised with every change of the weights, preprocessing or postprocessing."""

SCHP_VERSION = "1"
"""Raised when the same checkpoint gives other masks."""

LABEL_MAPS_VERSION = "1"
"""Raised when the same label maps are read as other labels."""

VERSIONS = {"builtin": BUILTIN_VERSION, "schp": SCHP_VERSION, "label-maps": LABEL_MAPS_VERSION}

# ONNX keeps tensors above 2 GB, and with torch.onnx all tensors, in files beside the graph. A tensor names its file in
# a StringStringEntryProto: field 1, 8 bytes, "location"; field 2, its length in one byte, the name.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")


def sidecar_path(model: Path) -> Path:
    """Return the path of the description of an ONNX model."""
    return model.with_name(model.name + ".toml")


def parser_files(model: Path) -> dict[str, Path]:
    """Return every file that is read when a parser is loaded from `model`, by its role.

    These are the model, the files that hold an ONNX model's tensors, the description beside it and the label set that
    the description names. Missing files are left out, except `model` itself; loading the parser reports them.
    """
    found = {"parser": model}
    found |= {f"parser's file {path.name}": path for path in weights_files(model)[1:]}
    sidecar = sidecar_path(model)
    if sidecar.is_file():
        found["parser's description"] = sidecar
        try:
            label_set = read_toml(sidecar, "the description of the model").get("label_set")
        except ConfigError:
            label_set = None  # reported when the parser is loaded
        if isinstance(label_set, str) and label_set.endswith(".toml") and (model.parent / label_set).is_file():
            found["parser's label set"] = model.parent / label_set
    return found


def weights_files(model: Path) -> tuple[Path, ...]:
    """Return the model's own file, then those beside it that hold an ONNX model's tensors, sorted by name."""
    if model.suffix != ".onnx" or not model.is_file() or model.stat().st_size == 0:
        return (model,)
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        named = {data[match.end() : match.end() + match[1][0]] for match in _LOCATION.finditer(data)}
    beside = []
    for raw in sorted(named):
        name = PurePosixPath(raw.decode("utf-8", errors="replace"))
        # ONNX allows no other places either.
        if not name.is_absolute() and ".." not in name.parts and (model.parent / name).is_file():
            beside.append(model.parent / name)
    return (model, *beside)


def weights_hash(model: Path) -> str:
    """Return the SHA-256 of a model's weights: of its file, or of the hashes of all its files if there are several.

    Raises:
        OSError: One of the files cannot be read.
    """
    hashes = [sha256_file(path) for path in weights_files(model)]
    return hashes[0] if len(hashes) == 1 else sha256_bytes("\n".join(hashes).encode())

"""Files of other programs: recognised by their content, and weights read without running code.

Everyone who reads a file that users download or copy (weights, checkpoints, ONNX models) calls
`check_file` first: a web page saved as `model.pth`, an empty file or a broken download is reported as that.
"""

from __future__ import annotations

import importlib
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pipeline.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Content = Literal[
    "safetensors", "torch", "torchscript", "onnx", "hdf5", "numpy", "zip", "archive", "pickle",
    "html", "lfs", "text", "empty", "zeros", "truncated", "unknown",
]  # fmt: skip

STATE_DICT: tuple[Content, ...] = ("safetensors", "torch")
"""Contents that `load_state_dict` reads."""

DESCRIPTIONS: dict[Content, str] = {
    "safetensors": "a safetensors file",
    "torch": "a PyTorch checkpoint",
    "torchscript": "a TorchScript program",
    "onnx": "an ONNX model",
    "hdf5": "an HDF5 file",
    "numpy": "a NumPy archive",
    "zip": "a zip archive",
    "archive": "a compressed archive",
    "pickle": "a Python pickle",
    "html": "a web page",
    "lfs": "a Git LFS pointer",
    "text": "a text file",
    "empty": "empty (0 bytes)",
    "zeros": "filled with zero bytes",
    "truncated": "truncated",
    "unknown": "of an unknown format",
}
"""What a content is, for messages: the file is `a web page`."""

HINTS: dict[Content, str] = {
    "html": "the link led to a page, for example a login or a virus-scan warning; download the file in a browser",
    "lfs": "git lfs pull fetches the file itself",
    "empty": "download or copy it again",
    "zeros": "download or copy it again",
    "truncated": "the download is incomplete; download it again",
    "archive": "unpack it first",
    "zip": "unpack it first",
    "torchscript": "save its weights: "
    "python -c \"import torch; torch.save(torch.jit.load({file}).state_dict(), 'weights.pth')\"",
    "pickle": "if you trust it, save its tensors once: "
    "python -c \"import pickle, torch; torch.save(pickle.load(open({file}, 'rb')), 'weights.pth')\"",
}
_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
_BEGIN = 4096
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_NESTED = ("state_dict", "model_state_dict", "model", "net", "teacher")
_REFUSED = re.compile(r"(?:GLOBAL|class) ([A-Za-z_][\w.]*\.\w+)")
_UNPICKLER = re.compile(r"WeightsUnpickler error: (.+)")


def sniff(path: Path) -> Content:
    """Return the content type of a file, from its bytes; raises `OSError` if the file cannot be read."""
    with path.open("rb") as stream:
        return sniff_stream(stream)


def sniff_stream(file: BinaryIO) -> Content:
    """Return the content type of an open file; see `sniff`."""
    data = file.read(_BEGIN)
    size = file.seek(0, 2)
    if not data:
        return "empty"
    if data.startswith(_ZIP):
        return _sniff_zip(file)
    if data.startswith(b"\x80") and data[1:2] in b"\x02\x03\x04\x05":
        return "torch" if data.startswith(_TORCH_LEGACY) else "pickle"
    if data.startswith(b"\x89HDF"):
        return "hdf5"
    if data.startswith(b"\x93NUMPY"):
        return "numpy"
    if data.startswith(_PACKED) or data[257:262] == b"ustar":
        return "archive"
    header = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and 2 <= header <= _LONGEST_HEADER:
        return "safetensors" if size >= 8 + header else "truncated"
    if not data.strip(b"\0"):
        return "zeros"
    # ModelProto: field 1 (ir_version, a small number), then one of its other fields.
    if len(data) > 2 and data[:1] == b"\x08" and data[1] < 128 and data[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72":
        return "onnx"
    return _sniff_text(data)


def _sniff_zip(file: BinaryIO) -> Content:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return "truncated"
    if "constants.pkl" in names:
        return "torchscript"
    if "data.pkl" in names:
        return "torch"
    return "numpy" if names and all(name.endswith(".npy") for name in names) else "zip"


def _sniff_text(data: bytes) -> Content:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last character may be cut.
        if error.start < len(data) - 4:
            return "unknown"
        text = data[: error.start].decode("utf-8")
    if not text or any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return "unknown"
    begin = text.lstrip("\ufeff \t\r\n").lower()
    if begin.startswith(("<!doctype html", "<html", "<head", "<script")):
        return "html"
    return "lfs" if begin.startswith("version https://git-lfs") else "text"


def check_file(
    path: Path, accepted: Collection[Content], *, title: str, expected: str | None = None, hint: str | None = None
) -> Content:
    """Check that a file exists and is of an accepted content; an unknown content is left to the reader.

    `title` (`weights file`) and `expected` describe the file in messages; `hint` is for a content that is known, but
    not accepted, and has no advice of its own.

    Raises:
        WeightsError: The file is missing, unreadable, or holds something else.
    """
    wanted = expected or " or ".join(DESCRIPTIONS[each] for each in accepted)
    if path.is_dir():
        raise WeightsError(f"the {title} is a folder", where=path, expected=wanted)
    if not path.exists():
        raise WeightsError(f"{title} not found", where=path, expected=wanted)
    try:
        content = sniff(path)
        with path.open("rb") as stream:
            begin = stream.read(60) if content in ("html", "text") else b""
    except OSError as error:
        raise WeightsError(f"the {title} cannot be read: {error.strerror or error}", where=path) from error
    if content in accepted or content == "unknown":
        return content
    shown = f", it begins with {begin.decode('utf-8', 'replace')!r}" if begin else ""
    cure = HINTS.get(content, hint)
    raise WeightsError(
        f"the {title} is {DESCRIPTIONS[content]}{shown}",
        where=path,
        expected=wanted,
        hint=cure.replace("{file}", repr(str(path))) if cure else None,
    )


def load_state_dict(path: Path, *, title: str = "weights file") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or a PyTorch checkpoint, on the CPU, without running code.

    The format follows from the content. A nested `state_dict` (or `model`, ...) is unwrapped, the prefix `module.` of
    DataParallel removed, and NumPy arrays and numbers are accepted, which training scripts often save.

    Raises:
        WeightsError: The file is missing, damaged, holds no tensors, several networks, numbers that are quantised or
            not finite, or objects that would run code.
    """
    content = check_file(path, STATE_DICT, title=title, expected="a state dict (.safetensors, .pth or .pt)")
    loaded: Any = _load_safetensors(path, title) if content == "safetensors" else _load_torch(path, title)
    loaded = _unwrapped(loaded, path, title)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"the {title} holds a {type(loaded).__name__}", where=path, expected="a state dict")
    import torch

    state = {str(name).removeprefix("module."): torch.as_tensor(v) for name, v in loaded.items() if _is_array(v)}
    if not state:
        keys = ", ".join(map(str, [*loaded][:5])) or "nothing"
        raise WeightsError(f"the {title} holds no tensors but {keys}", where=path, expected="a state dict")
    for name, value in state.items():
        if value.is_quantized or not value.isfinite().all():
            raise WeightsError(
                f"the {title} has {'quantised numbers' if value.is_quantized else 'NaN or infinity'} in {name!r}",
                where=path,
                expected="finite floating-point numbers",
                hint="use a checkpoint from before it was quantised"
                if value.is_quantized
                else "the training that "
                "wrote it diverged, or its numbers are too large for float16: use an earlier one, or one in float32",
            )
    return state


def _unwrapped(loaded: Any, path: Path, title: str) -> Any:
    """Return the state dict inside a checkpoint: under a usual key, or else the only entry that holds tensors."""
    while isinstance(loaded, Mapping):
        keys = [key for key in _NESTED if isinstance(loaded.get(key), Mapping)][:1]
        if not keys and not any(map(_is_array, loaded.values())):
            keys = [k for k, v in loaded.items() if isinstance(v, Mapping) and any(map(_is_array, v.values()))]
        if len(keys) > 1:
            raise WeightsError(
                f"the {title} holds several networks: {', '.join(map(str, keys))}",
                where=path,
                hint=f'save one of them: python -c "import torch; torch.save(torch.load({str(path)!r}, '
                f"map_location='cpu')[{keys[0]!r}], 'weights.pth')\"",
            )
        if not keys:
            break
        loaded = loaded[keys[0]]
    return loaded


def _is_array(value: Any) -> bool:
    import numpy as np
    from torch import Tensor

    # Of NumPy's types, torch takes no text and no objects.
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _load_safetensors(path: Path, title: str) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"the {title} is damaged or truncated", where=path, cause=error) from error


def _load_torch(path: Path, title: str) -> Any:
    import torch

    try:
        # A stream, because torch chooses the format of some paths by their suffix.
        with torch.serialization.safe_globals(_numpy_globals()), path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, title, str(error)) from None  # torch's text advises to run the code all the same
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        from pipeline.runtime.memory import out_of_memory

        if out_of_memory(error):
            raise
        raise WeightsError(f"the {title} is damaged or truncated", where=path, cause=error) from error


def _refused(path: Path, title: str, text: str) -> WeightsError:
    found = _REFUSED.search(text)
    if found is None:
        reason = _UNPICKLER.search(text)
        return WeightsError(f"the {title} is damaged", where=path, cause=reason[1] if reason else None)
    line = (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c), 'weights.pth')"
    )
    return WeightsError(
        f"the {title} contains {found[1]} objects, which could run code, and was not loaded",
        where=path,
        expected="a state dict of tensors",
        hint=f'if you trust it, save its state dict once: python -c "{line}"',
    )


def _numpy_globals() -> list[Any]:
    """NumPy's numbers, arrays and types, under the module names of NumPy 1 and 2; creating them runs no code."""
    import numpy as np
    from numpy import dtypes

    version = int(np.__version__.partition(".")[0])
    core = importlib.import_module("numpy._core.multiarray" if version > 1 else "numpy.core.multiarray")
    functions = [core.scalar, core._reconstruct]
    old_and_new = [
        (each, f"numpy.{name}.multiarray.{each.__name__}") for each in functions for name in ("core", "_core")
    ]
    types = [getattr(dtypes, name) for name in dir(dtypes) if name.endswith("DType")]
    scalars = [np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64]
    return [*old_and_new, np.ndarray, np.dtype, *types, *scalars]

"""Human parsers as ONNX files, run by ONNX Runtime (the extra `onnx`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DeviceError, FormatError, WeightsError
from pipeline.formats.foreign import check_file
from pipeline.parsing.files import sidecar_path, weights_hash
from pipeline.parsing.interface import ParserInfo
from pipeline.parsing.labels import LabelSet
from pipeline.parsing.sidecar import Sidecar, input_size_of, label_set_of, read_sidecar, to_input, to_soft
from pipeline.runtime.device import resolve_device
from pipeline.runtime.memory import out_of_memory

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_CUDA = "CUDAExecutionProvider"


class OnnxParser:
    """An ONNX model as a `Parser`; returned by `load_onnx`."""

    def __init__(self, session: Any, path: Path, sidecar: Sidecar, label_set: LabelSet) -> None:
        self._session = session
        self._path = path
        self._sidecar = sidecar
        entry = session.get_inputs()[0]
        _check_input(entry, sidecar, path)
        self._input = entry.name
        self._type = _TYPES[entry.type]
        axes = entry.shape[2:] if sidecar.layout == "nchw" else entry.shape[1:3]
        fixed = [size if isinstance(size, int) else None for size in axes]
        self.input_size = input_size_of(sidecar, path, (fixed[0], fixed[1]))
        # Exported with a fixed batch, a model takes no other.
        self._batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        outputs = {output.name: output.shape for output in session.get_outputs()}
        listed = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
        self._output = sidecar.output or next(iter(outputs))
        if self._output not in outputs:
            raise ConfigError(f"the model has no output {self._output!r}", where=path, expected=listed)
        probe = self._run(np.zeros((1, *self.input_size, 3), np.uint8))
        alternatives = f"set output in {sidecar_path(path).name} to one of: {listed}" if len(outputs) > 1 else None
        to_soft(probe, sidecar, label_set, path, hint=alternatives)
        options = session.get_provider_options()
        self.info = ParserInfo(
            name="onnx",
            version=sidecar.version,
            label_set=label_set,
            weights_sha256=weights_hash(path),
            backend="onnxruntime",
            precision=str(np.dtype(self._type)),
            fit=sidecar.fit,
            # ONNX Runtime returns arrays in the computer's memory, wherever it computes.
            device=f"cuda:{options[_CUDA].get('device_id', 0)}" if _CUDA in options else "cpu",
        )

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Label a batch; see `Parser.parse`."""
        return to_soft(self._run(images), self._sidecar, self.info.label_set, self._path)

    def _run(self, images: Tensor | np.ndarray) -> Tensor:
        values = to_input(images, self._sidecar).numpy().astype(self._type, copy=False)
        step = self._batch or len(values)
        missing = -len(values) % step
        padded = np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values
        outputs = [self._run_block(padded[start : start + step]) for start in range(0, len(padded), step)]
        return torch.from_numpy(np.concatenate(outputs)[: len(values)])

    def _run_block(self, block: np.ndarray) -> np.ndarray:
        try:
            output: np.ndarray = self._session.run([self._output], {self._input: block})[0]
        # ONNX Runtime's exceptions have no common base.
        except Exception as error:
            if out_of_memory(error):
                raise
            hint = "set masks.batch_size=1 if it was exported for single images" if len(block) > 1 else None
            text = f"the model fails on a batch of {len(block)} images"
            raise FormatError(text, where=self._path, hint=hint, cause=error) from error
        return output


def load_onnx(path: Path, *, label_set: str | None = None, device: str = "auto") -> OnnxParser:
    """Load an ONNX model as a parser.

    `PATH.toml` beside it describes it (docs/how-to/own-parser.md); `label_set` is for models whose description states
    none. CUDA needs the package `onnxruntime-gpu`.

    Raises:
        ConfigError: ONNX Runtime is not installed, or the description is missing or wrong.
        WeightsError: The file is missing, not an ONNX model, or newer than the installed ONNX Runtime.
        DeviceError: ONNX Runtime cannot use the device.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
    check_file(path, ["onnx"], title="ONNX model")
    sidecar = read_sidecar(path)
    labels = label_set_of(sidecar, path, label_set)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = _providers(device)
    try:
        session = onnxruntime.InferenceSession(path, sess_options=options, providers=providers)
    # ONNX Runtime's exceptions have no common base.
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _load_error(error, path, onnxruntime.__version__) from error
    # ONNX Runtime continues without a provider that does not start, which here would be a hundred times slower.
    if device.startswith("cuda") and _CUDA not in session.get_providers():
        raise DeviceError(
            "ONNX Runtime cannot start on CUDA",
            where=path,
            hint="its messages above give the reason, often another version of CUDA or cuDNN; or set masks.device=cpu",
        )
    return OnnxParser(session, path, sidecar, labels)


def _check_input(entry: Any, sidecar: Sidecar, path: Path) -> None:
    """Check that a model's first input is a batch of images in the layout that the description states."""
    if len(entry.shape) != 4 or entry.type not in _TYPES:
        raise WeightsError(
            f"the model's input {entry.name} has shape {entry.shape} and type {entry.type}",
            where=path,
            expected="a batch of images of floating-point numbers",
        )
    channels = {"nchw": entry.shape[1], "nhwc": entry.shape[3]}
    other = "nhwc" if sidecar.layout == "nchw" else "nchw"
    if isinstance(channels[sidecar.layout], int) and channels[sidecar.layout] != 3:
        raise ConfigError(
            f"the model's input {entry.name} has shape {entry.shape}, which is not {sidecar.layout} with 3 channels",
            where=path,
            hint=f'layout = "{other}" in {sidecar_path(path).name}' if channels[other] == 3 else None,
        )


def _load_error(error: Exception, path: Path, version: str) -> WeightsError:
    text = str(error).lower()
    if "ir version" in text or "opset" in text:
        return WeightsError(
            f"the ONNX model is newer than the installed ONNX Runtime {version}",
            where=path,
            hint="update onnxruntime, or export the model with an older opset and IR version",
            cause=error,
        )
    return WeightsError("ONNX Runtime cannot load the model", where=path, cause=error)


def _providers(device: str) -> list[Any]:
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if device == "auto":
        return [name for name in (_CUDA, "CPUExecutionProvider") if name in offered]
    target = resolve_device(device)
    if target.type == "cuda":
        if _CUDA not in offered:
            raise DeviceError(
                "the installed ONNX Runtime cannot use CUDA", hint="install onnxruntime-gpu, or set masks.device=cpu"
            )
        return [(_CUDA, {"device_id": target.index or 0}), "CPUExecutionProvider"]
    if target.type != "cpu":
        raise DeviceError(f"ONNX models cannot run on {device}", expected="auto, cpu or cuda")
    return ["CPUExecutionProvider"]

"""Human parsers as ONNX files, run by ONNX Runtime (the extra `onnx`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, DeviceError, FormatError, WeightsError, first_line
from pipeline.parsing.files import weights_hash
from pipeline.parsing.interface import ParserInfo
from pipeline.parsing.labels import LabelSet
from pipeline.parsing.sidecar import Sidecar, input_size_of, label_set_of, read_sidecar, to_input, to_soft
from pipeline.runtime.device import memory_exhausted, resolve_device

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_CUDA = "CUDAExecutionProvider"


class OnnxParser:
    """An ONNX model as a `Parser`; made by `load_onnx`."""

    def __init__(self, session: Any, path: Path, sidecar: Sidecar, label_set: LabelSet) -> None:
        self._session = session
        self._path = path
        self._sidecar = sidecar
        entry = session.get_inputs()[0]
        if len(entry.shape) != 4 or entry.type not in _TYPES:
            raise WeightsError(
                f"the model's input has shape {entry.shape} and type {entry.type}",
                where=path,
                expected="a batch of images, of floating-point numbers",
            )
        self._input = entry.name
        self._type = _TYPES[entry.type]
        axes = entry.shape[2:] if sidecar.layout == "nchw" else entry.shape[1:3]
        fixed = [size if isinstance(size, int) else None for size in axes]
        self.input_size = input_size_of(sidecar, path, (fixed[0], fixed[1]))
        # Exported with a fixed batch, a model takes no other.
        self._batch = entry.shape[0] if isinstance(entry.shape[0], int) else None
        names = [output.name for output in session.get_outputs()]
        self._output = sidecar.output or names[0]
        if self._output not in names:
            raise ConfigError(f"the model has no output {self._output!r}", where=path, expected=" | ".join(names))
        probe = self._run(np.zeros((1, *self.input_size, 3), np.uint8))
        soft = to_soft(probe, sidecar, label_set, path)
        self.info = ParserInfo(
            name="onnx",
            version=sidecar.version,
            label_set=label_set,
            native_size=(soft.shape[2], soft.shape[3]),
            weights_sha256=weights_hash(path),
            backend="onnxruntime",
            precision=str(np.dtype(self._type)),
            fit=sidecar.fit,
            # What comes out of ONNX Runtime lies in the processor's memory, wherever it was computed.
            device=_device_of(session),
        )

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Label a batch; see `Parser.parse`."""
        return to_soft(self._run(images), self._sidecar, self.info.label_set, self._path)

    def _run(self, images: Tensor | np.ndarray) -> Tensor:
        values = to_input(images, self._sidecar, torch.device("cpu")).numpy().astype(self._type, copy=False)
        step = self._batch or len(values)
        outputs = []
        for start in range(0, len(values), step):
            block = values[start : start + step]
            missing = step - len(block)
            if missing:
                block = np.concatenate([block, np.zeros((missing, *block.shape[1:]), block.dtype)])
            outputs.append(self._run_block(block)[: step - missing])
        return torch.from_numpy(np.concatenate(outputs))

    def _run_block(self, block: np.ndarray) -> np.ndarray:
        try:
            output: np.ndarray = self._session.run([self._output], {self._input: block})[0]
        # ONNX Runtime's exceptions share no base of their own.
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            if memory_exhausted(error):
                raise torch.OutOfMemoryError(text) from error
            raise FormatError(
                f"the model fails on a batch of {len(block)} images: {text.splitlines()[0]}",
                where=self._path,
                hint="masks.batch_size=1, if it was exported for single images" if len(block) > 1 else None,
            ) from error
        return output


def load_onnx(path: Path, *, label_set: str | None = None, device: str = "auto") -> OnnxParser:
    """Load an ONNX model as a parser.

    Args:
        path: The model; `PATH.toml` beside it describes it (docs/how-to/own-parser.md).
        label_set: What its labels mean, where the TOML file does not say it.
        device: As in the configuration; CUDA needs the package `onnxruntime-gpu`.

    Raises:
        ConfigError: ONNX Runtime is not installed, or the description is missing or wrong.
        WeightsError: The file is missing or is no ONNX model.
        DeviceError: ONNX Runtime cannot use the device.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
    if not path.is_file():
        raise WeightsError("the ONNX model does not exist", where=path)
    sidecar = read_sidecar(path)
    labels = label_set_of(sidecar, path, label_set)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = _providers(device)
    try:
        session = onnxruntime.InferenceSession(path, sess_options=options, providers=providers)
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        if memory_exhausted(error):
            raise torch.OutOfMemoryError(first_line(error)) from error
        raise WeightsError(f"the ONNX model cannot be loaded: {first_line(error)}", where=path) from error
    # ONNX Runtime goes on without a provider that does not start, which here would be a hundred times slower.
    if device.startswith("cuda") and _CUDA not in session.get_providers():
        raise DeviceError(
            "ONNX Runtime could not start on CUDA",
            where=path,
            hint="its messages above say why, often another version of CUDA or cuDNN; or use --device cpu",
        )
    return OnnxParser(session, path, sidecar, labels)


def _device_of(session: Any) -> str:
    """Where a session computes, as torch names it."""
    if _CUDA not in session.get_providers():
        return "cpu"
    return f"cuda:{session.get_provider_options()[_CUDA].get('device_id', 0)}"


def _providers(device: str) -> list[Any]:
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if device == "auto":
        return [name for name in (_CUDA, "CPUExecutionProvider") if name in offered]
    target = resolve_device(device)
    if target.type == "cuda":
        if _CUDA not in offered:
            raise DeviceError(
                "the installed ONNX Runtime cannot use CUDA", hint="install onnxruntime-gpu, or use --device cpu"
            )
        return [(_CUDA, {"device_id": target.index or 0}), "CPUExecutionProvider"]
    if target.type != "cpu":
        raise DeviceError(f"ONNX models cannot be computed on {device}", expected="auto, cpu or cuda")
    return ["CPUExecutionProvider"]

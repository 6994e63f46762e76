"""Human parsers as TorchScript files.

Unlike weights and ONNX graphs, a TorchScript file is a program. So it is only loaded if the TOML file beside it has
`trust = true`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, FormatError, WeightsError
from pipeline.formats.foreign import check_file
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.interface import ParserInfo
from pipeline.parsing.labels import LabelSet
from pipeline.parsing.sidecar import Sidecar, input_size_of, label_set_of, read_sidecar, to_input, to_soft
from pipeline.runtime.device import resolve_device
from pipeline.runtime.files import sha256_file
from pipeline.runtime.memory import out_of_memory


class TorchScriptParser:
    """A TorchScript module as a `Parser`; returned by `load_torchscript`."""

    def __init__(
        self, module: torch.nn.Module, path: Path, sidecar: Sidecar, label_set: LabelSet, device: torch.device
    ) -> None:
        self._module = module
        self._path = path
        self._sidecar = sidecar
        self._label_set = label_set
        self._device = device
        self.input_size = input_size_of(sidecar, path, (None, None))
        self.parse(np.zeros((1, *self.input_size, 3), np.uint8))
        self.info = ParserInfo(
            name="torchscript",
            version=sidecar.version,
            label_set=label_set,
            weights_sha256=sha256_file(path),
            backend="torchscript",
            precision="float32",
            fit=sidecar.fit,
            device=str(device),
        )

    @torch.inference_mode()
    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        """Label a batch; see `Parser.parse`."""
        try:
            output = self._module(to_input(images, self._sidecar, self._device))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise FormatError(
                f"the model fails on a batch of {len(images)} images", where=self._path, cause=error
            ) from error
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise FormatError(f"the model returns a {type(output).__name__}", where=self._path, expected="a tensor")
        return to_soft(output, self._sidecar, self._label_set, self._path)


def load_torchscript(path: Path, *, label_set: str | None = None, device: str = "auto") -> TorchScriptParser:
    """Load a TorchScript module as a parser.

    `PATH.toml` beside it describes it (docs/how-to/own-parser.md) and must state `trust = true`.

    Raises:
        ConfigError: The description is missing or wrong, or does not declare trust.
        WeightsError: The file is missing or not a TorchScript module.
        FormatError: The module does not take images or does not give label maps.
    """
    check_file(path, ["torchscript"], title="TorchScript file")
    sidecar = read_sidecar(path)
    if not sidecar.trust:
        raise ConfigError(
            "a TorchScript file is a program, and this one is not declared as trusted",
            where=path,
            expected=f"trust = true in {sidecar_path(path).name}",
            hint="only for files from a source you trust; ONNX files need no trust",
        )
    labels = label_set_of(sidecar, path, label_set)
    target = resolve_device(device)
    try:
        # torch deprecates TorchScript, but users of existing files cannot act on that warning here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(str(path), map_location=target).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        if out_of_memory(error):
            raise
        raise WeightsError("torch cannot load the TorchScript file", where=path, cause=error) from error
    return TorchScriptParser(module, path, sidecar, labels, target)

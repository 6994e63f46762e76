"""metrics.jsonl: one JSON object a line for each step, epoch, evaluation and calibration; TensorBoard as an extra."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pipeline.errors import ConfigError
from pipeline.runtime.files import atomic_write

Kind = Literal["step", "epoch", "evaluation", "calibration"]


class _Board(Protocol):
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends to a metrics file. Use as a context manager.

    Args:
        path: The file. Lines after `step`, which a killed run wrote and the resumed one writes again, are dropped.
        step: Steps that the state being resumed has done.
        untested: Whether the evaluation after that step is to be made again; its line is dropped then.
        tensorboard: Also write TensorBoard logs into this folder.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, *, step: int = 0, untested: bool = False, tensorboard: Path | None = None) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        # Logged once, at the end; a run that was killed after it logs it again.
        kept = [line for line in kept if line["kind"] != "calibration"]
        if untested:
            kept = [line for line in kept if line["kind"] != "evaluation" or line["step"] < step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(_line(line) for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = None if tensorboard is None else _open_board(tensorboard, step)

    def write(self, kind: Kind, *, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """Add a line; `step` counts finished steps, `epoch` from 1. Numbers also go to TensorBoard."""
        self._file.write(_line({"kind": kind, "step": step, "epoch": epoch, **values}))
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Hand written lines to the system."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; none if it is missing. A last line that a kill cut off is left out."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return
        yield line


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps({name: _rounded(value) for name, value in values.items()}) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no NaN; six digits are what a curve can use.
        return float(f"{value:.6g}") if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return value


def _open_board(folder: Path, step: int) -> _Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "TensorBoard is not installed", where="train.tensorboard", hint="pip install tensorboard"
        ) from None
    board: _Board = SummaryWriter(folder, purge_step=step + 1)
    return board

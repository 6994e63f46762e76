"""metrics.jsonl: one JSON object per line, for each step, epoch, evaluation and calibration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.runtime.files import atomic_write
from pipeline.training.loggers import Logger

Kind = Literal["step", "epoch", "evaluation", "calibration"]


class MetricsLog:
    """Appends to a metrics file. Use as a context manager.

    Args:
        path: The file. Lines after `step`, which a killed run wrote and the resumed one writes again, are dropped.
        step: Steps done so far.
        evaluation_due: The evaluation after that step is repeated, so its line is dropped.
        loggers: Receive the numbers as well; closed with this log.
    """

    def __init__(
        self, path: Path, *, step: int = 0, evaluation_due: bool = False, loggers: Sequence[Logger] = ()
    ) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
        # A run that was killed after its calibration repeats it.
        kept = [line for line in kept if line["kind"] != "calibration"]
        if evaluation_due:
            kept = [line for line in kept if line["kind"] != "evaluation" or line["step"] < step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(_line(line) for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._loggers = loggers

    def write(self, kind: Kind, *, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        """Write a line; `step` counts finished steps, `epoch` from 1."""
        self._file.write(_line({"kind": kind, "step": step, "epoch": epoch, **values}))
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for logger in self._loggers:
            logger.log(numbers, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for logger in self._loggers:
            logger.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; none if it is missing, and not a last one that a kill truncated."""
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
        # JSON has no NaN; a curve needs no more than six digits.
        return float(f"{value:.6g}") if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return value

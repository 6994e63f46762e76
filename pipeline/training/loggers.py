"""Loggers of other programs behind one interface: TensorBoard, Weights & Biases, MLflow.

Each is an optional extra of its name and writes below the folder of the training, without a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError

Settings = Mapping[str, Any]


class Logger(Protocol):
    """Receives numbers of a training."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by name after `step` steps."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


def open_logger(name: str, folder: Path, step: int, settings: Settings) -> Logger:
    """Open a logger in `folder / name`, or reopen the one of the first `step` steps of the same training.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        return _OPENERS[name](folder / name, step, settings)
    except ImportError:
        raise ConfigError(
            f"{name} is not installed", where="train.loggers", hint=f'pip install "sgsfa[{name}]"'
        ) from None


class _TensorBoard:
    def __init__(self, folder: Path, step: int, _settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what a killed run logged after its last saved state.
        self._writer: Any = SummaryWriter(folder, purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, _step: int, settings: Settings) -> None:
        import wandb

        folder.mkdir(exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        quiet = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(project="sgsfa", dir=folder, mode=mode, config=dict(settings), settings=quiet)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MlFlow:
    def __init__(self, folder: Path, _step: int, settings: Settings) -> None:
        # Plain files: creating MLflow's database takes longer than a short training.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        folder.mkdir(exist_ok=True)
        self._client = MlflowClient(folder.resolve().as_uri())
        experiment = self._client.get_experiment_by_name("sgsfa")
        number = self._client.create_experiment("sgsfa") if experiment is None else experiment.experiment_id
        runs = self._client.search_runs([number])
        self._run = (runs[0] if runs else self._client.create_run(number)).info.run_id
        if not runs:
            for key, value in settings.items():
                self._client.log_param(self._run, key, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


_OPENERS: dict[str, Callable[[Path, int, Settings], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MlFlow,
}

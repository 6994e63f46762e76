"""A whole training: from images, masks and a configuration to a checkpoint with calibrated thresholds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError
from pipeline.model.checkpoint import save_checkpoint
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import device_label
from pipeline.runtime.files import write_json
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.process_group import broadcast, process_group, same_on_all_ranks
from pipeline.runtime.progress import SILENT, Progress
from pipeline.runtime.seeds import set_deterministic
from pipeline.training.calibrate import LEAST_AUC, UNCALIBRATED, Calibration, calibrate
from pipeline.training.context import TeacherData, TrainContext
from pipeline.training.curves import draw_curves
from pipeline.training.evaluator import Evaluator
from pipeline.training.loggers import open_logger
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.report import (
    BEST_FILE,
    CURVES_FILE,
    METRICS_FILE,
    MODEL_FILE,
    REPORT_FILE,
    STATE_FOLDER,
    TrainReport,
    finished_report,
)
from pipeline.training.setup import SHARED_FOLDER, prepare
from pipeline.training.trainer import Trainer

_log = logging.getLogger("sgsfa.training")

_DISCARDED = f"{STATE_FOLDER}.discarded"


def train(
    workdir: Path,
    *,
    dataset: Dataset,
    masks: Path | None,
    model: ModelConfig,
    loss: LossConfig,
    config: TrainConfig,
    tests: Sequence[Dataset] = (),
    teacher: TeacherData | None = None,
    progress: Progress = SILENT,
) -> TrainReport:
    """Train a network on the training split of a data set.

    Leaves in `workdir`: `model.safetensors` (weights, configuration and thresholds), `metrics.jsonl`, `curves.png`,
    `training.json` (the report) and, with evaluations, `best.safetensors`. Meanwhile `state/` holds the decoded
    images and the resumable state: a run that was killed, stopped or out of memory resumes when it is started again,
    and ends with the same weights (bit-equal on a CPU or with deterministic kernels). In several processes, which
    torchrun starts, all call this and work together.

    Args:
        workdir: Folder of the results.
        dataset: Its records of the split `train` are trained on.
        masks: The mask file; None trains without L_se. The baseline ignores it.
        model: The network.
        loss: The losses.
        config: The training.
        tests: The first is tested every `config.eval_every` epochs.
        teacher: Rendered images of `config.mask_teacher`; the baseline ignores them.
        progress: Receives progress bars.

    Raises:
        DataError: No training images, too few identities, or a loss that is not finite.
        FormatError: The mask file is damaged, or the state in `workdir` was created with other settings or data.
        WeightsError: The starting weights do not fit, or the state is damaged.
        DeviceError: The device is not available or its memory is exhausted; the last saved state is kept.
        KeyboardInterrupt: Stopped by Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, with the state saved.
    """
    with process_group() as ranks, memory_advice("train", config):
        if ranks.is_main:
            shutil.rmtree(workdir / _DISCARDED, ignore_errors=True)
        report = broadcast(finished_report(workdir) if ranks.is_main else None)
        if report is not None:
            return report
        tune_allocator()
        set_deterministic(config.deterministic)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        network, context = prepare(
            workdir / STATE_FOLDER,
            dataset,
            masks if model.kind == "sgsfa" else None,
            model=model,
            loss=loss,
            config=config,
            teacher=teacher if model.kind == "sgsfa" and config.mask_teacher else None,
            ranks=ranks,
            progress=progress,
        )
        trainer = Trainer(network, context)
        if not same_on_all_ranks(trainer.step):
            raise DataError("the processes resume at different steps", where=context.folder, hint=SHARED_FOLDER)
        if not ranks.is_main:
            trainer.run()
            return _report(trainer, context, UNCALIBRATED)
        return _train_and_keep(workdir, trainer, context, tests)


def _train_and_keep(workdir: Path, trainer: Trainer, context: TrainContext, tests: Sequence[Dataset]) -> TrainReport:
    """Train in the main process, and write what the training leaves."""
    config, settings = context.config, context.meta.provenance.values
    evaluator = Evaluator(tests[0], context, workdir / BEST_FILE) if tests and config.eval_every else None
    loggers = [open_logger(name, workdir, trainer.step, settings) for name in config.loggers]
    with MetricsLog(
        workdir / METRICS_FILE, step=trainer.step, evaluation_due=trainer.evaluation_due, loggers=loggers
    ) as log:
        trainer.run(log, evaluator)
        # From here on nothing is trained again, whatever fails.
        trainer.save()
        calibration = calibrate(trainer.stepper.trained, context)
        if weak := ", ".join(f"{part} {area:.2f}" for part, area in calibration.weak.items()):
            _log.warning("visibility is predicted poorly (ROC AUC below %s): %s", LEAST_AUC, weak)
        values = {
            "thresholds": list(calibration.thresholds),
            "visibility_accuracy": calibration.accuracy,
            "visibility_auc": calibration.auc,
        }
        log.write("calibration", step=trainer.step, epoch=config.epochs, values=values)
    meta = calibration.complete(context.meta, config.epochs)
    save_checkpoint(workdir / MODEL_FILE, trainer.stepper.trained, meta)
    draw_curves(workdir / METRICS_FILE, workdir / CURVES_FILE)
    report = _report(trainer, context, calibration)
    write_json(workdir / REPORT_FILE, asdict(report))
    # By one rename, so that a kill leaves either a state to resume or a finished training.
    context.folder.rename(workdir / _DISCARDED)
    shutil.rmtree(workdir / _DISCARDED)
    return report


def _report(trainer: Trainer, context: TrainContext, calibration: Calibration) -> TrainReport:
    seconds = trainer.losses.seconds
    return TrainReport(
        images=len(context.store.names),
        identities=context.meta.num_classes,
        without_mask=context.masks.without_mask if context.model.kind == "sgsfa" else 0,
        failed=context.store.rejected,
        epochs=context.config.epochs,
        steps=trainer.step,
        seconds=round(seconds, 3),
        images_per_second=round(trainer.step * context.batch_size / max(seconds, 1e-9), 2),
        device=device_label(context.device),
        processes=context.ranks.world_size,
        thresholds=calibration.thresholds,
        visibility_accuracy=calibration.accuracy,
        visibility_auc=calibration.auc,
        best=trainer.best,
        peak_memory_gb=round(torch.cuda.max_memory_reserved() / 2**30, 3) if context.device.type == "cuda" else None,
    )

"""A whole training run: from images, masks and a configuration to a checkpoint with calibrated thresholds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError, Rejected, WeightsError
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.formats.masks import PART_NAMES
from pipeline.model.checkpoint import save_checkpoint, start_from
from pipeline.model.network import Network, build_model
from pipeline.model.weights import load_backbone_weights, require_weights_for
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import device_label, memory_watched, no_room
from pipeline.runtime.files import read_json, sha256_bytes, sha256_file, write_json
from pipeline.runtime.process_group import RankInfo, broadcast, process_group, rank_info, same_on_all_ranks
from pipeline.runtime.progress import SILENT, Progress
from pipeline.runtime.seeds import derive, set_deterministic
from pipeline.training.calibrate import LEAST_AUC, UNCALIBRATED, Calibration, calibrate
from pipeline.training.curves import draw_curves
from pipeline.training.feeder import Feeder
from pipeline.training.loop import STATE_FILE, Loop, Setting
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.sampler import check_batches
from pipeline.training.store import ImageStore, Targets, cached_images, load_targets, open_images
from pipeline.training.validate import TestSet

MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
REPORT_FILE = "training.json"
STATE_FOLDER = "state"
_DISCARDED = f"{STATE_FOLDER}.discarded"
_TRAINED = "the trained network is kept: the same command goes on from there, also with --device cpu"
_SHARE = "machines that train together need the artifact folder on a disk that they share, under the same path"


@dataclass(frozen=True)
class TrainReport:
    """What a training run did.

    Attributes:
        images: Images trained on.
        identities: Identities among them.
        without_mask: Images that trained without L_se, because their mask failed or is not in the mask file; 0 for
            the baseline, which needs none.
        failed: Images that could not be read and were left out.
        epochs: Epochs.
        steps: Optimiser steps.
        seconds: Time of the training steps, over all runs that worked on it; without decoding and calibration.
        images_per_second: Images trained a second, likewise.
        device: Where.
        processes: How many processes.
        thresholds: Calibrated tau of the seven parts.
        visibility_accuracy: Balanced accuracy of the predicted visibility on occluded training images, by part.
        visibility_auc: Area under its ROC curve, by part.
        best: Epoch and mAP of the best evaluation during training; None without evaluations.
        peak_memory_gb: Most of the GPU's memory that was taken at once, unused parts of it included; None on other
            devices.
    """

    images: int
    identities: int
    without_mask: int
    failed: tuple[Rejected, ...]
    epochs: int
    steps: int
    seconds: float
    images_per_second: float
    device: str
    processes: int
    thresholds: tuple[float, ...]
    visibility_accuracy: Mapping[str, float]
    visibility_auc: Mapping[str, float]
    best: tuple[int, float] | None
    peak_memory_gb: float | None


def train(
    workdir: Path,
    *,
    dataset: Dataset,
    masks: Path | None,
    model: ModelConfig,
    loss: LossConfig,
    config: TrainConfig,
    tests: Sequence[Dataset] = (),
    progress: Progress = SILENT,
) -> TrainReport:
    """Train a network on the training split of a data set.

    Leaves in `workdir`: `model.safetensors` (weights, configuration and thresholds), `metrics.jsonl`, `curves.png`,
    `training.json` (the report) and, with evaluations, `best.safetensors`. Meanwhile `state/` holds the decoded
    images and the resumable state; a run that was killed, stopped or out of memory goes on from there when it is
    started again, and ends with the same weights (on a CPU, or with deterministic kernels, to the bit).

    Under torchrun all processes call this and work together.

    Args:
        workdir: Where to work and leave the results.
        dataset: Its records of the split `train` are trained on.
        masks: The mask file; None trains without L_se. The baseline ignores it.
        model: The network.
        loss: The losses.
        config: The training.
        tests: The first is tested every `config.eval_every` epochs.
        progress: Where to report.

    Raises:
        DataError: No training images, too few identities, or a loss that is not finite.
        FormatError: The mask file is damaged.
        WeightsError: The starting weights or the state in `workdir` do not fit.
        DeviceError: The device is not there or its memory is exhausted.
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, with the state saved.
    """
    with process_group() as ranks:
        if ranks.is_main:
            shutil.rmtree(workdir / _DISCARDED, ignore_errors=True)
        report = broadcast(_finished(workdir) if ranks.is_main else None)
        return report or _train(
            workdir,
            dataset=dataset,
            masks=masks if model.kind == "sgsfa" else None,
            model=model,
            loss=loss,
            config=config,
            tests=tests,
            progress=progress,
        )


def _train(
    workdir: Path,
    *,
    dataset: Dataset,
    masks: Path | None,
    model: ModelConfig,
    loss: LossConfig,
    config: TrainConfig,
    tests: Sequence[Dataset] = (),
    progress: Progress = SILENT,
) -> TrainReport:
    tune_allocator()
    set_deterministic(config.deterministic)
    place = rank_info()
    device = place.select_device(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    state = workdir / STATE_FOLDER
    records = {record.path: record for record in dataset.split("train")}
    if not records:
        raise DataError(f"{dataset.name} has no images of the split `train`", where=dataset.root)
    store = _images(records, dataset, model, config, state / "images", place, progress)
    targets = load_targets(
        records, store.names, masks, height=model.height, width=model.width, stride=8 if model.fine_masks else 16
    )
    check_batches(targets.labels.tolist(), config, processes=place.world_size)
    _announce(store, targets, model, loss, device, place, progress)

    meta = CheckpointMeta(
        model=model,
        num_classes=targets.num_classes,
        thresholds=(),
        trained_on=f"{dataset.kind}:{dataset.name}",
        epochs=config.epochs,
        seed=config.seed,
        identities=_people(store, records),
    )
    network = _network(model, config, targets)
    if config.start is not None:
        meta = _begin(config.start, network, meta, progress, resumed=(state / STATE_FILE).exists())
    with memory_watched(device, lambda: no_room(device, "the network and its data do not fit")):
        network = network.to(device)
        if config.channels_last:
            network = network.to(memory_format=torch.channels_last)
        targets_there = targets.to(device)
        feeder = Feeder(store, device)
        setting = Setting(
            names=store.names,
            feeder=feeder,
            targets=targets_there,
            size=(model.height, model.width),
            device=device,
            place=place,
            folder=state,
            identity=_identity(model, loss, config, targets.num_classes, store.names),
        )
        loop = Loop(network, setting, model, loss, config, progress)
    if not same_on_all_ranks(loop.step):
        raise DataError("the processes would go on from different steps", where=state, hint=_SHARE)

    def calibrated(trained: nn.Module, pause: Callable[[], None] = lambda: None) -> Calibration:
        batch = config.identities * config.instances // config.accumulate
        return calibrate(
            trained.eval(),
            feeder,
            targets_there,
            model,
            batch=batch,
            device=device,
            amp=config.amp,
            progress=progress,
            pause=pause,
        )

    def keep_best(trained: nn.Module, epoch: int, found: Calibration) -> None:
        best = dataclasses.replace(
            meta, epochs=epoch, thresholds=found.thresholds, figures={"visibility_auc": found.auc}
        )
        save_checkpoint(workdir / BEST_FILE, trained, best)

    if place.is_main:
        tester = None
        if tests and config.eval_every:
            tester = TestSet(tests[0], model, device, config.amp, keep_best, calibrated, progress)
        board = workdir / "tensorboard" if config.tensorboard else None
        with MetricsLog(workdir / METRICS_FILE, step=loop.step, untested=loop.untested, tensorboard=board) as log:
            loop.run(log, tester)
            loop.save()
            with memory_watched(device, lambda: no_room(device, "calibration does not fit", hint=_TRAINED)):
                result = calibrated(loop.trained)
            _warn_of_weak_visibility(result, progress)
            log.write(
                "calibration",
                step=loop.step,
                epoch=config.epochs,
                values={
                    "thresholds": list(result.thresholds),
                    "visibility_accuracy": result.accuracy,
                    "visibility_auc": result.auc,
                },
            )
        save_checkpoint(
            workdir / MODEL_FILE,
            loop.trained,
            dataclasses.replace(meta, thresholds=result.thresholds, figures={"visibility_auc": result.auc}),
        )
        draw_curves(workdir / METRICS_FILE, workdir / CURVES_FILE)
    else:
        loop.run(None)
        result = UNCALIBRATED
    report = _report(loop, store, targets, model, config, result, device, place)
    if place.is_main:
        write_json(workdir / REPORT_FILE, dataclasses.asdict(report))
        # By one rename, so that a kill leaves either a state to go on from or a finished run.
        discarded = workdir / _DISCARDED
        state.rename(discarded)
        shutil.rmtree(discarded)
    return report


def _finished(workdir: Path) -> TrainReport | None:
    """The report of a run that was killed after its last file was written."""
    path = workdir / REPORT_FILE
    if (workdir / STATE_FOLDER).exists() or not path.is_file():
        return None
    values: dict[str, Any] = read_json(path)
    values["failed"] = tuple(Rejected(**each) for each in values["failed"])
    values["thresholds"] = tuple(values["thresholds"])
    values["best"] = None if values["best"] is None else tuple(values["best"])
    return TrainReport(**values)


def _images(
    records: Mapping[str, Record],
    dataset: Dataset,
    model: ModelConfig,
    config: TrainConfig,
    cache: Path,
    place: RankInfo,
    progress: Progress,
) -> ImageStore:
    def made() -> Path:
        return cached_images(
            dataset, sorted(records), height=model.height, width=model.width, cache=cache, progress=progress
        )

    # Each process of a machine holds the images for itself.
    budget = config.image_budget_gb / place.local_world_size
    if place.world_size == 1:
        return open_images(made(), budget)
    # The leader decodes, the others wait and then read what it wrote.
    path = broadcast(made() if place.is_main else Path())
    if not path.is_file():
        raise DataError(
            f"process {place.rank} of {place.world_size} does not see what the first process wrote",
            where=path,
            hint=_SHARE,
        )
    return open_images(path, budget)


def _announce(
    store: ImageStore,
    targets: Targets,
    model: ModelConfig,
    loss: LossConfig,
    device: torch.device,
    place: RankInfo,
    progress: Progress,
) -> None:
    processes = f", {place.world_size} processes" if place.world_size > 1 else ""
    progress.note(
        f"training on {len(store.names):,} images of {targets.num_classes:,} identities, "
        f"{device_label(device)}{processes}"
    )
    if store.rejected:
        shown = "; ".join(f"{each.path}: {each.reason}" for each in store.rejected[:5])
        progress.warn(f"{len(store.rejected):,} training images cannot be read and are left out: {shown}")
    if model.kind == "sgsfa" and targets.without_mask:
        progress.warn(
            f"{targets.without_mask:,} of {len(store.names):,} training images have no mask; they train without L_se"
        )
    taught = loss.balance * loss.mask_weight > 0 and bool(targets.has_mask.any())
    if model.kind == "sgsfa" and model.body_attention and not taught:
        progress.warn("nothing teaches the body mask (no masks, or L_se counts nothing): it stays as it began")
    absent = [name for name, given in zip(PART_NAMES, targets.given.tolist(), strict=True) if not given]
    if model.kind == "sgsfa" and absent:
        strips = "; without a head there are no strips either" if "head" in absent else ""
        progress.warn(f"the masks cannot tell of {', '.join(absent)}: left out of training and matching{strips}")
    seen = targets.parts.any(dim=3).any(dim=2).any(dim=0) | ~targets.given
    never = [name for name, shown in zip(PART_NAMES, seen.tolist(), strict=True) if not shown]
    if model.kind == "sgsfa" and targets.has_mask.any() and never:
        progress.warn(
            f"no mask shows {', '.join(never)}, although the labels have it: is their label set the right one? "
            "`sgsfa masks stats` counts, `sgsfa masks preview` draws"
        )
    alone = int((torch.bincount(targets.labels) == 1).sum())
    if alone:
        progress.warn(f"{alone:,} of {targets.num_classes:,} identities have a single image: their batches repeat it")


def _warn_of_weak_visibility(result: Calibration, progress: Progress) -> None:
    if result.weak:
        listed = ", ".join(f"{part} {area:.2f}" for part, area in result.weak.items())
        progress.warn(f"visibility is predicted poorly (ROC AUC below {LEAST_AUC}): {listed}")


def check_network(model: ModelConfig, *, from_weights: bool = True) -> None:
    """See that there is such a network, and `model.weights` for it where they are no file.

    Args:
        model: The network's configuration.
        from_weights: Whether training begins with `model.weights`, and not with a checkpoint.

    Raises:
        ConfigError: There is no such backbone, or it gives no features of the needed strides.
        WeightsError: There are no such weights for it.
    """
    if from_weights:
        require_weights_for(model.weights, model.backbone)
    # Some of timm's networks look at their own numbers while they are made.
    with nullcontext() if model.backbone.startswith("timm:") else torch.device("meta"):
        build_model(model, 2)


def _network(model: ModelConfig, config: TrainConfig, targets: Targets) -> Network:
    """The starting weights; the same in every process, and no matter what was drawn before."""
    weights = load_backbone_weights(model.weights, model.backbone) if config.start is None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        try:
            return build_model(model, targets.num_classes, backbone_weights=weights, supervised_parts=targets.given)
        except WeightsError as error:
            # The network sees tensors only; the user needs the name of their file.
            where = error.where or model.weights
            raise WeightsError(error.message, where=where, expected=error.expected, hint=error.hint) from None


def _begin(start: Path, network: Network, meta: CheckpointMeta, progress: Progress, *, resumed: bool) -> CheckpointMeta:
    """Fill the network with a checkpoint's weights; what the new checkpoint will say of itself."""
    theirs = start_from(start, network, meta)
    if not resumed:
        kept = theirs.same_identities(meta)
        progress.note(
            f"starting from {start}; its identity classifiers "
            + ("go on, too" if kept else "are of other people and start anew")
        )
    return dataclasses.replace(meta, started_from=f"{theirs.trained_on} ({sha256_file(start)[:12]})")


def _people(store: ImageStore, records: Mapping[str, Record]) -> str:
    return sha256_bytes("\n".join(f"{records[name].pid} {name}" for name in store.names).encode())


def _identity(
    model: ModelConfig, loss: LossConfig, config: TrainConfig, num_classes: int, names: Sequence[str]
) -> dict[str, Any]:
    identity: dict[str, Any] = {"classes": num_classes, "images": sha256_bytes("\n".join(names).encode())}
    for section, values in (("model", model), ("loss", loss), ("train", config)):
        for field in values.decisive_fields():
            identity[f"{section}.{field}"] = values.model_dump(mode="json")[field]
    if Path(model.weights).is_file():
        # What the weights are counts, not where they lie.
        identity["model.weights"] = sha256_file(Path(model.weights))
    if config.start is not None:
        identity["train.start"] = sha256_file(config.start)
        del identity["model.weights"]
    return identity


def _report(
    loop: Loop,
    store: ImageStore,
    targets: Targets,
    model: ModelConfig,
    config: TrainConfig,
    result: Calibration,
    device: torch.device,
    place: RankInfo,
) -> TrainReport:
    batch = config.identities * config.instances
    return TrainReport(
        images=len(store.names),
        identities=targets.num_classes,
        without_mask=targets.without_mask if model.kind == "sgsfa" else 0,
        failed=store.rejected,
        epochs=config.epochs,
        steps=loop.step,
        seconds=round(loop.seconds, 3),
        images_per_second=round(loop.step * batch / max(loop.seconds, 1e-9), 2),
        device=device_label(device),
        processes=place.world_size,
        thresholds=result.thresholds,
        visibility_accuracy=result.accuracy,
        visibility_auc=result.auc,
        best=loop.best,
        peak_memory_gb=round(torch.cuda.max_memory_reserved() / 2**30, 3) if device.type == "cuda" else None,
    )

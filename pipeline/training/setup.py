"""From a data set, masks and a configuration to a training that can begin."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from pipeline.config import LossConfig, ModelConfig, TrainConfig
from pipeline.datasets.records import Dataset
from pipeline.errors import DataError, WeightsError
from pipeline.formats.checkpoint import CheckpointMeta, resolve_checkpoint
from pipeline.formats.masks import PART_NAMES
from pipeline.formats.provenance import Provenance
from pipeline.model.checkpoint import start_from
from pipeline.model.mask_targets import MaskTargets
from pipeline.model.network import Network, build_model
from pipeline.model.weights import load_backbone_weights, require_weights_for
from pipeline.runtime.device import device_label
from pipeline.runtime.files import sha256_bytes, sha256_file
from pipeline.runtime.process_group import RankInfo, barrier, broadcast
from pipeline.runtime.progress import Progress
from pipeline.runtime.seeds import derive
from pipeline.training.context import ExtraImages, TeacherData, TrainContext
from pipeline.training.extra import occluded_copies
from pipeline.training.image_store import ImageStore, cached_images, open_images
from pipeline.training.prefetch import Prefetcher
from pipeline.training.sampler import check_batches
from pipeline.training.targets import load_masks

SHARED_FOLDER = "machines that train together need this folder on a disk that they share, under the same path"

_IMAGES = "images"
_TEACHER = "teacher"

_log = logging.getLogger("sgsfa.training")


def check_network(model: ModelConfig, *, from_weights: bool = True) -> None:
    """Check that a network can be built and, with `from_weights`, that `model.weights` fit its backbone.

    Raises:
        ConfigError: The backbone is unknown or has no features of the needed strides.
        WeightsError: There are no such weights for it.
    """
    if from_weights:
        require_weights_for(model.weights, model.backbone)
    # Some of timm's networks compute with their own numbers while they are built.
    with nullcontext() if model.backbone.startswith("timm:") else torch.device("meta"):
        build_model(model, 2)


def prepare(
    folder: Path,
    dataset: Dataset,
    masks: Path | None,
    *,
    model: ModelConfig,
    loss: LossConfig,
    config: TrainConfig,
    teacher: TeacherData | None,
    ranks: RankInfo,
    progress: Progress,
) -> tuple[Network, TrainContext]:
    """Decode the images into `folder`, load masks and starting weights; the errors are those of `run.train`.

    Returns:
        The network on the device, and what it trains on.
    """
    device = ranks.select_device(config.device)
    pids = {record.path: record.pid for record in dataset.split("train")}
    if not pids:
        raise DataError(f"{dataset.name} has no images of the split `train`", where=dataset.root)
    open_store = functools.partial(_open_store, model=model, config=config, ranks=ranks, progress=progress)
    store = open_store(folder / _IMAGES, dataset)
    # Classes are numbered in the order of the person ids.
    labels = torch.from_numpy(np.unique([pids[name] for name in store.names], return_inverse=True)[1])
    targets = load_masks(masks, store.names, model, store.areas)
    check_batches(labels.tolist(), config, processes=ranks.world_size)
    classes = int(labels.max()) + 1
    where = device_label(device) + (f", {ranks.world_size} processes" if ranks.world_size > 1 else "")
    _log.info("training on %d images of %d identities, %s", len(store.names), classes, where)
    for warning in _warnings(store, labels, targets, model, loss):
        _log.warning(warning)
    identities = sha256_bytes("\n".join(f"{pids[name]} {name}" for name in store.names).encode())
    meta = CheckpointMeta(
        model=model,
        num_classes=classes,
        thresholds=(),
        trained_on=f"{dataset.kind}:{dataset.name}",
        identities=identities,
        epochs=config.epochs,
        seed=config.seed,
        provenance=_provenance(model, loss, config, identities),
    )
    network, meta = _starting_network(config, meta, targets.supervised_parts)
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    context = TrainContext(
        meta, loss, config, store, Prefetcher(store, device), labels.to(device), targets.to(device), device, ranks,
        folder, progress,
    )  # fmt: skip
    extra = occluded_copies(context) if teacher is None else _mask_teacher(context, teacher, open_store)
    return network, dataclasses.replace(context, extra=extra)


def _mask_teacher(
    context: TrainContext, data: TeacherData, open_store: Callable[[Path, Dataset], ImageStore]
) -> ExtraImages:
    """Decode the images of the mask teacher and build their masks."""
    store, mask_file = open_store(context.folder / _TEACHER, data.dataset), context.folder / _TEACHER / "masks.h5"
    if context.ranks.is_main:
        data.build_masks(mask_file)
    barrier()
    masks = load_masks(mask_file, store.names, context.model, store.areas)
    if lost := len(store.rejected) + masks.without_mask:
        _log.warning("%d images of the mask teacher cannot be read or have no mask and are left out", lost)
    config, images = context.config, Prefetcher(store, context.device)
    return ExtraImages("mask_teacher", config.mask_teacher, config, images, masks.to(context.device))


def _open_store(
    cache: Path, dataset: Dataset, *, model: ModelConfig, config: TrainConfig, ranks: RankInfo, progress: Progress
) -> ImageStore:
    """Decode the training images in the main process, and open the file in all."""
    names = sorted({record.path for record in dataset.split("train")})
    path = Path()
    if ranks.is_main:
        path = cached_images(dataset, names, model, cache=cache, progress=progress)
    path = broadcast(path)
    if not path.is_file():
        raise DataError(
            f"process {ranks.rank} of {ranks.world_size} does not find the decoded images",
            where=path,
            hint=SHARED_FOLDER,
        )
    # Each process of a machine holds the images for itself.
    return open_images(path, config.image_budget_gb / ranks.local_world_size)


def _warnings(
    store: ImageStore, labels: torch.Tensor, masks: MaskTargets, model: ModelConfig, loss: LossConfig
) -> Iterator[str]:
    if store.rejected:
        shown = "; ".join(f"{each.path}: {each.reason}" for each in store.rejected[:5])
        yield f"{len(store.rejected):,} training images cannot be read and are left out: {shown}"
    if single := int((torch.bincount(labels) == 1).sum()):
        yield f"{single:,} identities have a single image, which is repeated in their batches"
    if model.kind == "baseline":
        return
    if masks.without_mask:
        yield f"{masks.without_mask:,} of {len(store.names):,} training images have no mask and train without L_se"
    supervised = loss.balance * loss.mask_weight > 0 and bool(masks.has_mask.any())
    if model.body_attention and not supervised:
        yield "the body mask is not supervised (no masks, or L_se has no weight) and keeps its initial weights"
    if absent := [name for name, given in zip(PART_NAMES, masks.supervised_parts.tolist(), strict=True) if not given]:
        stripes = "; without a head there are no spatial parts either" if "head" in absent else ""
        yield f"the label set of the masks lacks {', '.join(absent)}: left out of training and matching{stripes}"
    if masks.has_mask.any() and (never := masks.never_shown()):
        yield f"no mask shows {', '.join(never)}, although the label set has it: is masks.label_set correct?"


def _starting_network(
    config: TrainConfig, meta: CheckpointMeta, supervised_parts: torch.Tensor
) -> tuple[Network, CheckpointMeta]:
    """Return the network with its starting weights, the same in every process, and the completed header."""
    model = meta.model
    weights = load_backbone_weights(model.weights, model.backbone) if config.start is None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        try:
            network = build_model(model, meta.num_classes, backbone_weights=weights, supervised_parts=supervised_parts)
        except WeightsError as error:
            # The network sees tensors; the user needs the name of their file.
            where = error.where or model.weights
            raise WeightsError(error.message, where=where, expected=error.expected, hint=error.hint) from None
    if config.start is None:
        return network, meta
    path = resolve_checkpoint(config.start)
    start = start_from(path, network, meta)
    kept = "copied" if start.same_identities(meta) else "new, because the identities differ"
    _log.info("starting from %s (trained on %s); identity classifiers are %s", path, start.trained_on, kept)
    return network, dataclasses.replace(meta, started_from=f"{start.trained_on} ({sha256_file(path)[:12]})")


def _provenance(model: ModelConfig, loss: LossConfig, config: TrainConfig, identities: str) -> Provenance:
    """Return what decides the result: settings, images and identities, and the content of weights files."""
    table = {
        name: section.model_dump(mode="json", include=set(section.decisive_fields()))
        for name, section in (("model", model), ("loss", loss), ("train", config))
    }
    if config.start is not None:
        table["train"]["start"] = sha256_file(resolve_checkpoint(config.start))
        del table["model"]["weights"]
    elif (file := Path(model.weights)).is_file():
        table["model"]["weights"] = sha256_file(file)
    # The stage knows its content.
    del table["train"]["teacher_data"]
    return Provenance.flatten({**table, "identities": identities})

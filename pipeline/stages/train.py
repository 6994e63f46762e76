"""The stage `train`: a network from images and masks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import MasksConfig, ModelConfig
from pipeline.datasets.records import Dataset, unique_names
from pipeline.errors import ConfigError, DataError, FormatError, WeightsError
from pipeline.formats.checkpoint import BUILTIN, read_meta, require_same_network, resolve_checkpoint
from pipeline.runtime.files import at_home
from pipeline.runtime.process_group import rank_info
from pipeline.runtime.progress import Progress
from pipeline.stages.checks import check_device, check_package, find_imagenet
from pipeline.stages.masks import LABEL_MAP_SUFFIXES, LABEL_MAPS, MASKS_FILE
from pipeline.stages.sources import PACKAGE, RENDERED
from pipeline.stages.stage import FILE, Check, Stage, StageReport, section_settings

if TYPE_CHECKING:
    from pipeline.training.context import TeacherData

CHECKPOINT = "model.safetensors"

_BUILTIN_WEIGHTS = PACKAGE / "model" / "imagenet" / "mobilenet_v2.safetensors"


class Train(Stage):
    """Train the network."""

    name = "train"
    format_version = 3  # thresholds miss 2 % of the visible parts
    distributed = True
    continue_key = "train.start"

    def requires(self) -> tuple[str, ...]:
        """Return `synth` for rendered images, and `masks` unless they are a file or not needed."""
        config = self.config
        images = (config.data.source, *(config.data.tests if config.train.eval_every else ()), *self._teacher_data)
        masks = config.model.kind != "baseline" and config.masks.file is None
        return (("synth",) if RENDERED in images else ()) + (("masks",) if masks else ())

    def settings(self) -> Mapping[str, Any]:
        """Return the sections `model`, `loss` and `train`."""
        config = self.config
        settings = {
            **section_settings("model", config.model),
            **section_settings("loss", config.loss),
            **section_settings("train", config.train, "teacher_data"),
        }
        if self._teacher_data:
            grouping = config.masks.grouping
            settings["masks.grouping"] = FILE if grouping.endswith(".toml") else grouping
        if config.train.start is not None:
            settings["train.start"] = FILE
            del settings["model.weights"]  # the checkpoint brings those of the backbone
        elif self._weights_file is not None:
            settings["model.weights"] = FILE
        return settings

    @property
    def _teacher_data(self) -> tuple[str, ...]:
        """The data set that teaches masks, or nothing."""
        spec = self.config.teacher_spec
        return () if spec is None else (spec,)

    @property
    def _weights_file(self) -> Path | None:
        weights = self.config.model.weights
        return None if weights in ("imagenet", "builtin", "rendered", "none") else at_home(weights)

    @property
    def _mask_file(self) -> Path | None:
        """The mask file that the configuration names, if the network needs masks."""
        return None if self.config.model.kind == "baseline" else self.config.masks.file

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of images, masks, starting weights and, if it evaluates, test images."""
        config, sources = self.config, self.sources
        found = {"training images": sources.images(config.data.source, "train")}
        if (file := self._mask_file) is not None:
            found["masks"] = sources.file(file, "mask file", FormatError)
        elif config.model.kind != "baseline":
            found["masks"] = sources.fingerprints["masks"]
        found |= {key: sources.file(path, what, WeightsError) for key, path, what in self._starting_files()}
        for spec in self._teacher_data:
            found["teacher images"] = sources.images(spec, "train")
            if spec != RENDERED:
                found["teacher label maps"] = sources.tree(_label_maps(sources.open(spec)), *LABEL_MAP_SUFFIXES)
            if config.masks.grouping.endswith(".toml"):
                found["grouping"] = sources.file(Path(config.masks.grouping), "grouping file", ConfigError)
        if config.train.eval_every:
            found |= sources.test_images()
        return found

    def _starting_files(self) -> Iterator[tuple[str, Path, str]]:
        """Yield the file that training starts from, if there is one: key, path, and what it is."""
        if self.config.train.start is not None:
            yield "start", resolve_checkpoint(self.config.train.start), "checkpoint to start from"
        elif self._weights_file is not None:
            yield "weights", self._weights_file, "weights file"
        elif self.config.model.weights == "builtin":
            yield "weights", _BUILTIN_WEIGHTS, "file of the built-in ImageNet weights"
        elif self.config.model.weights == "rendered":
            yield "weights", resolve_checkpoint(BUILTIN), "built-in re-ID network"

    def checks(self) -> Iterator[Check]:
        """Yield images, device, network with its starting weights, batches, mask file and packages."""
        config, sources = self.config, self.sources
        yield Check("training images", sources.describe_training)
        if config.train.eval_every:
            yield Check("test images", lambda: sources.describe_test(sources.tests()[0], matches=True))
        yield Check("device", lambda: check_device(config.train.device, config.train.amp, distributed=True))
        yield Check("network", self._check_network)
        if config.data.source != RENDERED:
            yield Check("batches", self._check_batches)
        if (file := self._mask_file) is not None and config.data.source != RENDERED:
            yield Check("mask file", functools.partial(self._check_mask_file, file))
        for spec in self._teacher_data:
            if spec != RENDERED:
                yield Check("mask teacher", functools.partial(self._check_teacher, spec))
        for name in config.train.loggers:
            yield Check(name, functools.partial(check_package, name, name, "train.loggers"))

    def _check_network(self) -> str:
        from pipeline.training.setup import check_network

        model, start = self.config.model, self.config.train.start
        check_network(model, from_weights=start is None)
        if start is not None:
            meta = read_meta(resolve_checkpoint(start))
            require_same_network(start, meta, model)
            return f"{model.backbone}, continued from {start.name}, trained on {meta.trained_on}"
        if self._weights_file is not None:
            _check_weights(self._weights_file, model)
        elif model.weights == "imagenet":
            return f"{model.backbone}, {find_imagenet(model.backbone)}"
        return f"{model.backbone}, weights {model.weights}"

    def _check_batches(self) -> str:
        from pipeline.training.sampler import check_batches

        train = self.config.train
        pids = {record.path: record.pid for record in self.sources.training().split("train")}
        check_batches(list(pids.values()), train, processes=rank_info().world_size)
        return f"{train.identities} identities with {train.instances} images each"

    def _check_mask_file(self, file: Path) -> str:
        from pipeline.formats.masks import MaskFile

        masks = MaskFile.open(file)
        names = {record.path for record in self.sources.training().split("train")}
        covered = sum(name in masks for name in names)
        if not covered:
            raise FormatError(
                "mask file has none of the training images",
                where=file,
                expected=f"masks of images such as {min(names)}; the file has {masks.names[0]}",
            )
        return f"{covered:,} of {len(names):,} images"

    def _check_teacher(self, spec: str) -> str:
        dataset = self.sources.open(spec)
        return f"{len(dataset.split('train')):,} images, label maps in {_label_maps(dataset)}"

    def disk_bytes(self) -> int:
        """Return about how much decoded images, the resumable state and the checkpoints take."""
        model = self.config.model
        specs = (self.config.data.source, *self._teacher_data)
        images = sum(self.sources.count_images(spec, "train") for spec in specs)
        return images * model.height * model.width * 3 + 600_000_000

    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Train."""
        from pipeline.training.run import train

        config, sources, grouping = self.config, self.sources, self.config.masks.grouping
        masks = None
        if config.model.kind != "baseline":
            masks = config.masks.file or sources.folder("masks") / MASKS_FILE
        report = train(
            folder,
            dataset=sources.training(),
            masks=masks,
            model=config.model,
            loss=config.loss,
            config=config.train,
            tests=[sources.open(test.spec) for test in sources.tests()] if config.train.eval_every else (),
            teacher=next((open_teacher(sources.open(spec), grouping, progress) for spec in self._teacher_data), None),
            progress=progress,
        )
        figures = {"images_per_second": report.images_per_second, "train_seconds": report.seconds}
        return StageReport(total=report.images + len(report.failed), rejected=report.failed, figures=figures)


def open_teacher(dataset: Dataset, grouping: str, progress: Progress) -> TeacherData:
    """Return a rendered data set as the teacher of masks, built from its true label maps in the grouping of the run.

    Raises:
        DataError: It has no training images or no label maps.
    """
    from pipeline.masks.build import build_masks
    from pipeline.training.context import TeacherData

    build = functools.partial(
        build_masks,
        root=dataset.root,
        names=unique_names(dataset.split("train")),
        config=MasksConfig(parser=LABEL_MAPS, grouping=grouping),
        label_maps=_label_maps(dataset),
        progress=progress,
    )
    return TeacherData(dataset, build)


def _label_maps(dataset: Dataset) -> Path:
    if dataset.label_maps is None or not dataset.split("train"):
        what = "label maps" if dataset.split("train") else "training images"
        raise DataError(
            f"{dataset.kind}:{dataset.root} has no {what} and cannot teach masks",
            where="train.teacher_data",
            expected="synthetic:DIR, a rendered data set with true label maps",
        )
    return dataset.label_maps


def _check_weights(path: Path, model: ModelConfig) -> None:
    """Check that a weights file can be read and is of the backbone; raises `WeightsError` if it is not."""
    from pipeline.model.network import build_model
    from pipeline.model.weights import load_backbone_weights

    weights = load_backbone_weights(str(path), model.backbone)
    try:
        build_model(model, 2, backbone_weights=weights)
    except WeightsError as error:
        raise WeightsError(error.message, where=path, expected=error.expected, hint=error.hint) from error

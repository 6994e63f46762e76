"""The stage `masks`: part masks of the training images."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.datasets.records import unique_names
from pipeline.errors import ConfigError, WeightsError
from pipeline.formats.provenance import fingerprint
from pipeline.parsing.files import VERSIONS, parser_files
from pipeline.runtime.files import at_home
from pipeline.runtime.progress import Progress
from pipeline.stages.checks import check_package
from pipeline.stages.sources import PACKAGE, RENDERED
from pipeline.stages.stage import FILE, Check, Stage, StageReport, section_settings

MASKS_FILE = "masks.h5"

LABEL_MAPS = "label-maps"
LABEL_MAP_SUFFIXES = (".png", ".npy")
_ENTRY_POINTS = "sgsfa.parsers"
_BUILTIN_WEIGHTS = PACKAGE / "parsing" / "weights" / "builtin.safetensors"
_BYTES_PER_IMAGE = 12_000
"""Of a row of a mask file, before compression."""


class Masks(Stage):
    """Build the part masks of the training images."""

    name = "masks"
    allow_key = "masks.allow_failed"

    def requires(self) -> tuple[str, ...]:
        """Return `synth`, if the training images are rendered."""
        return ("synth",) if self.config.data.source == RENDERED else ()

    def settings(self) -> Mapping[str, Any]:
        """Return the section `masks`; whether failed masks stop the run does not change them."""
        settings = section_settings("masks", self.config.masks, "file", "allow_failed")
        settings["masks.parser"] = self._kind
        for key in ("masks.label_set", "masks.grouping"):
            if (settings[key] or "").endswith(".toml"):
                settings[key] = FILE
        return settings

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of the images, regardless of identities and cameras, and of the parser."""
        config, sources = self.config, self.sources
        images = sources.images(config.data.source, "train", identities=False)
        found = {"training images": images, **self._parser_input()}
        if (version := VERSIONS.get(self._kind)) is not None:
            found["parser version"] = version
        for what, value in (("label set", config.masks.label_set), ("grouping", config.masks.grouping)):
            if value is not None and value.endswith(".toml"):
                found[what] = sources.file(Path(value), f"{what} file", ConfigError)
        return found

    @property
    def _kind(self) -> str:
        return self.config.masks.parser.partition(":")[0]

    def _parser_input(self) -> dict[str, str]:
        sources, argument = self.sources, self.config.masks.parser.partition(":")[2]
        if self._kind == "builtin":
            return {"parser": sources.file(_BUILTIN_WEIGHTS, "weights file of the built-in parser", WeightsError)}
        if self._kind == LABEL_MAPS:
            folder = self._label_maps()
            return {} if folder is None else {"label maps": sources.tree(folder, *LABEL_MAP_SUFFIXES)}
        found = {}
        path = at_home(argument)
        if argument and (path.is_file() or self._kind in ("schp", "onnx")):
            for what, file in parser_files(path).items():
                found[what] = sources.file(file, what if file != path else "file of the parser", WeightsError)
        elif argument:
            # Only an installed parser knows what its argument means: a folder counts by content, others by text.
            found["parser argument"] = sources.tree(path) if path.is_dir() else fingerprint(argument)
        for point in importlib.metadata.entry_points(group=_ENTRY_POINTS, name=self._kind):
            if point.dist is not None:
                found["parser package"] = f"{point.dist.name} {point.dist.version}"
        return found

    def _label_maps(self) -> Path | None:
        """Return the folder of label maps; None for rendered images, whose fingerprint includes theirs."""
        argument = self.config.masks.parser.partition(":")[2]
        if argument:
            return at_home(argument)
        return None if self.config.data.source == RENDERED else self.sources.training().label_maps

    def checks(self) -> Iterator[Check]:
        """Yield the images, the parser with its labels, grouping and device, or the label maps, and the back end."""
        yield Check("training images", self.sources.describe_training)
        yield Check("label maps" if self._kind == LABEL_MAPS else "parser", self._check_source)
        if self.config.masks.backend == "dask":
            yield Check("back end", lambda: check_package("distributed", "dask", "masks.backend"))

    def _check_source(self) -> str:
        from pipeline.masks.source import open_source

        masks = self.config.masks
        if self.config.data.source != RENDERED:
            dataset = self.sources.training()
            names = tuple(unique_names(dataset.split("train")))
            source = open_source(masks, dataset.root, names, dataset.label_maps)
        elif self._kind == LABEL_MAPS:
            return "those of the rendered images"
        else:
            source = open_source(masks, Path(), (), None)
        return f"{masks.parser}, labels {source.label_set}"

    def disk_bytes(self) -> int:
        """Return about how much the mask file takes."""
        return self.sources.count_images(self.config.data.source, "train") * _BYTES_PER_IMAGE

    @property
    def allows_rejected(self) -> bool:
        """Whether a run continues without the masks that failed."""
        return self.config.masks.allow_failed

    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Build the mask file."""
        from pipeline.masks.build import build_masks

        dataset = self.sources.training()
        report = build_masks(
            folder / MASKS_FILE,
            root=dataset.root,
            names=unique_names(dataset.split("train")),
            config=self.config.masks,
            label_maps=dataset.label_maps,
            progress=progress,
        )
        figures = {"images_per_second": report.images_per_second}
        return StageReport(total=report.total, rejected=report.failed, figures=figures)

"""Inputs of the stages: data sets, files of the user, and the artifacts of earlier stages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.datasets.faults import match_fault
from pipeline.datasets.fingerprint import dataset_fingerprint, image_hashes
from pipeline.datasets.records import Dataset, Record, Split, queries_without_match, short_name, unique_names
from pipeline.errors import ArtifactError, DataError, UserError
from pipeline.formats.provenance import fingerprint
from pipeline.runtime.files import at_home, sha256_file
from pipeline.runtime.progress import SILENT, Progress

log = logging.getLogger("sgsfa.data")

RENDERED = "rendered"
"""The data source that names the images rendered by the stage `synth`."""

SYNTH_FOLDER = "dataset"
"""Folder of the rendered data set inside its artifact."""

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of this package, which brings some weights."""

_CACHE = Path(".cache") / "images.json"


@dataclass(frozen=True, slots=True)
class TestSet:
    """A data set to test on: a name that is safe for folders, and its specification KIND:PATH."""

    __test__ = False  # not a test case for pytest

    name: str
    spec: str


@dataclass
class Sources:
    """Opens each data set of a configuration once, and fingerprints everything that a stage reads.

    Attributes:
        progress: Shows the hashing of many images.
        fingerprints: Of the artifacts of earlier stages, finished or not; filled by the plan.
        folders: Of the artifacts of earlier stages that are finished.
    """

    config: RunConfig
    progress: Progress = SILENT
    fingerprints: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    _opened: dict[str, Dataset] = field(default_factory=dict)
    _hashed: dict[tuple[str, tuple[str, ...], bool], str] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Return the folder of an earlier stage's artifact; raises `ArtifactError` if it is not finished."""
        if stage not in self.folders:
            raise ArtifactError(f"stage {stage} is not finished", hint="run it first")
        return self.folders[stage]

    def reopened(self) -> Sources:
        """Return the same sources with nothing remembered, to find what changed since."""
        return Sources(self.config, SILENT, self.fingerprints, self.folders)

    def open(self, spec: str) -> Dataset:
        """Return the data set of a specification; `rendered` is the one of the stage `synth`.

        Raises:
            DataError: It cannot be read.
        """
        if spec not in self._opened:
            # Only names are read; plans of rendered images never come here.
            from pipeline.datasets.registry import open_dataset

            if spec == RENDERED:
                dataset = open_dataset(f"synthetic:{self.folder('synth') / SYNTH_FOLDER}")
                dataset = replace(dataset, name=RENDERED)
            else:
                dataset = open_dataset(spec, expect_counts=self.config.data.expect_counts)
                for note in dataset.notes:
                    log.info("%s: %s", spec, note)
            self._opened[spec] = dataset
        return self._opened[spec]

    def training(self) -> Dataset:
        """Return the data set to train on; raises `DataError` if it cannot be read, or has no training images."""
        spec = self.config.data.source
        dataset = self.open(spec)
        if not dataset.split("train"):
            raise DataError("data set has no training images", where=spec, expected="images in the split `train`")
        return dataset

    @property
    def test_specs(self) -> tuple[str, ...]:
        """Specifications of the data sets to test on."""
        return self.config.data.tests or (self.config.data.source,)

    def tests(self) -> tuple[TestSet, ...]:
        """Return the data sets to test on, with distinct names."""
        found: dict[str, TestSet] = {}
        for spec in self.test_specs:
            base = short_name(RENDERED if spec == RENDERED else self.open(spec).name)
            name, number = base, 2
            while name in found:
                name, number = f"{base}-{number}", number + 1
            found[name] = TestSet(name, spec)
        return tuple(found.values())

    def test_records(self, spec: str) -> tuple[Record, ...]:
        """Return query and gallery of a data set; raises `DataError` if one of them is empty."""
        dataset = self.open(spec)
        for split in ("query", "gallery"):
            if not dataset.split(split):
                raise DataError(f"data set has no {split} images", where=spec, expected="a query and a gallery")
        return dataset.split("query", "gallery")

    def describe_training(self) -> str:
        """Return the numbers of training images and identities; see `training` for errors."""
        if self.config.data.source == RENDERED:
            return "to be rendered"
        records = self.training().split("train")
        return f"{len(records):,} of {len({record.pid for record in records}):,} identities"

    def describe_test(self, test: TestSet, *, matches: bool = False) -> str:
        """Return the numbers of queries and gallery images of a test set.

        Raises:
            DataError: A split is empty, or with `matches`, no query has a match in another camera.
        """
        if test.spec == RENDERED:
            return "to be rendered"
        self.test_records(test.spec)
        dataset = self.open(test.spec)
        queries, gallery = dataset.split("query"), dataset.split("gallery")
        text = f"{len(queries):,} queries, {len(gallery):,} gallery images"
        if not matches:
            return text
        if (fault := match_fault(dataset)) is not None:
            raise DataError(fault.message, where=test.spec, expected=fault.expected, hint=fault.hint)
        return f"{text}, {len(queries) - len(queries_without_match(queries, gallery)):,} queries with a match"

    def count_images(self, spec: str, *splits: Split) -> int:
        """Return the number of images of a data set in some splits."""
        if spec == RENDERED:
            synth = self.config.synth
            return synth.ids * synth.cameras * synth.shots
        return len(self.open(spec).split(*splits))

    def images(self, spec: str, *splits: Split, identities: bool = True) -> str:
        """Return the fingerprint of the images in some splits: names and contents, identities and cameras.

        Raises:
            DataError: The data set or some of its images cannot be read.
        """
        if spec == RENDERED:
            return self.fingerprints["synth"]
        key = (spec, splits, identities)
        if key not in self._hashed:
            dataset = self.open(spec)
            records = dataset.split(*splits)
            if identities:
                cache = self.config.artifacts / _CACHE
                self._hashed[key] = dataset_fingerprint(dataset, records, cache, self.progress)
            else:
                self._hashed[key] = self._contents(dataset.root, unique_names(records))
        return self._hashed[key]

    def _contents(self, root: Path, names: Sequence[str]) -> str:
        return fingerprint(image_hashes(root, names, cache=self.config.artifacts / _CACHE, progress=self.progress))

    def test_images(self) -> dict[str, str]:
        """Return the fingerprints of the images of all test sets."""
        return {f"test images {test.name}": self.images(test.spec, "query", "gallery") for test in self.tests()}

    def attributes(self, spec: str) -> str | None:
        """Return the fingerprint of the further columns of a data set, or None if it has none of its own."""
        if spec == RENDERED:
            return None  # part of the fingerprint of the rendered images
        extra = self.open(spec).extra
        return fingerprint({name: dict(columns) for name, columns in extra.items()}) if extra else None

    def tree(self, folder: Path, *suffixes: str) -> str:
        """Return the fingerprint of the files under a folder, or of those with some suffixes: names and contents.

        Raises:
            DataError: The folder is missing or some files cannot be read.
        """
        if not folder.is_dir():
            raise DataError("folder not found", where=folder)
        names = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes)
        )
        return self._contents(folder, names)

    @staticmethod
    def file(path: Path, what: str, error: type[UserError]) -> str:
        """Return the SHA-256 of a file of the user, `what` in messages; raises an `error` if it cannot be read."""
        try:
            return sha256_file(at_home(path))
        except FileNotFoundError:
            raise error(f"{what} not found", where=path) from None
        except OSError as cause:
            raise error(f"{what} cannot be read: {cause.strerror or cause}", where=path) from cause

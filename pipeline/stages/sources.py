"""Where the stages' inputs come from: data sets, files of the user, and the artifacts of earlier stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.datasets.faults import NO_CAMERAS
from pipeline.datasets.fingerprint import dataset_fingerprint, image_hashes
from pipeline.datasets.records import Dataset, Record, Split, lonely_queries, short_name, unique_names
from pipeline.errors import ArtifactError, DataError, UserError
from pipeline.formats.provenance import fingerprint
from pipeline.runtime.files import at_home, sha256_file
from pipeline.runtime.progress import Progress
from pipeline.store.artifact import Artifact

RENDERED = "rendered"
"""The data source that names the people rendered by the `synth` stage."""

SYNTH_FOLDER = "dataset"
"""Folder of the rendered data set inside its artifact."""

_CACHE = Path(".cache") / "images.json"


@dataclass(frozen=True, slots=True)
class TestSet:
    """A data set to test on: a name that is safe for folders, and what it was named by."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    name: str
    spec: str


@dataclass
class Sources:
    """Opens data sets once, and knows the fingerprint of everything that a stage reads.

    Attributes:
        config: The configuration of the run.
        progress: Told what is read.
        artifacts: Earlier stages of the run, by name, with their fingerprints; filled by the plan.
    """

    config: RunConfig
    progress: Progress
    artifacts: dict[str, tuple[str, Artifact]] = field(default_factory=dict)
    _opened: dict[str, Dataset] = field(default_factory=dict)
    _prints: dict[tuple[str, str, tuple[str, ...]], str] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Folder of an earlier stage's artifact.

        Raises:
            ArtifactError: It is not there.
        """
        _, artifact = self.artifacts[stage]
        if artifact.state != "complete":
            raise ArtifactError(f"the stage {stage} is not finished", where=artifact.path, hint="`sgsfa run` makes it")
        return artifact.path

    def open(self, spec: str) -> Dataset:
        """The data set that `spec` names; `rendered` is the one that the `synth` stage made.

        Raises:
            DataError: It cannot be read.
        """
        if spec not in self._opened:
            # Reading names needs no more than that; whole plans of rendered people never come here.
            from pipeline.datasets.registry import open_dataset

            if spec == RENDERED:
                dataset = open_dataset(f"synthetic:{self.folder('synth') / SYNTH_FOLDER}")
                dataset = replace(dataset, name=RENDERED)
            else:
                dataset = open_dataset(spec, expect_counts=self.config.data.expect_counts)
                for note in dataset.notes:
                    self.progress.note(f"{spec}: {note}")
            self._opened[spec] = dataset
        return self._opened[spec]

    def training(self) -> Dataset:
        """The data set to train on.

        Raises:
            DataError: It cannot be read, or has no training images.
        """
        spec = self.config.data.source
        dataset = self.open(spec)
        if not dataset.split("train"):
            raise DataError(
                "the data set has no images to train on",
                where=spec,
                expected="images in a `train` split",
                hint="for masks or features alone, use `sgsfa masks build` or `sgsfa extract`",
            )
        return dataset

    def tests(self) -> tuple[TestSet, ...]:
        """The data sets to test on, with distinct names."""
        found: list[TestSet] = []
        taken: set[str] = set()
        for spec in self.config.data.tests or (self.config.data.source,):
            label = RENDERED if spec == RENDERED else self.open(spec).name
            base = short_name(label)
            name, number = base, 2
            while name in taken:
                name, number = f"{base}-{number}", number + 1
            taken.add(name)
            found.append(TestSet(name, spec))
        return tuple(found)

    def test_records(self, spec: str) -> tuple[Record, ...]:
        """Query and gallery of a data set.

        Raises:
            DataError: One of them is empty.
        """
        dataset = self.open(spec)
        for split in ("query", "gallery"):
            if not dataset.split(split):
                raise DataError(
                    f"the data set has no {split} images", where=spec, expected="a query and a gallery to test on"
                )
        return dataset.split("query", "gallery")

    def require_matches(self, spec: str) -> None:
        """See that something can be found at all.

        Raises:
            DataError: No query's identity was seen by another camera of the gallery.
        """
        dataset = self.open(spec)
        queries = dataset.split("query")
        if queries and len(lonely_queries(queries, dataset.split("gallery"))) == len(queries):
            raise DataError(
                "no query has a gallery image of the same identity in another camera",
                where=spec,
                expected="another camera than the query's: images of its own camera are not counted as found",
                hint=NO_CAMERAS,
            )

    def images(self, spec: str, *splits: Split) -> str:
        """Fingerprint of the images of a data set in some splits: names, identities, cameras and contents.

        Raises:
            DataError: The data set cannot be read, or some images are not there.
        """
        if spec == RENDERED:
            return self.artifacts["synth"][0]
        key = ("images", spec, splits)
        if key not in self._prints:
            dataset = self.open(spec)
            cache = self.config.artifacts / _CACHE
            self._prints[key] = dataset_fingerprint(dataset, dataset.split(*splits), cache, self.progress)
        return self._prints[key]

    def contents(self, spec: str, *splits: Split) -> str:
        """Fingerprint of the images of a data set in some splits, whoever they show: names and contents.

        Raises:
            DataError: The data set cannot be read, or some images are not there.
        """
        if spec == RENDERED:
            return self.artifacts["synth"][0]
        key = ("contents", spec, splits)
        if key not in self._prints:
            dataset = self.open(spec)
            names = sorted(unique_names(dataset.split(*splits)))
            self._prints[key] = fingerprint(
                image_hashes(dataset.root, names, cache=self.config.artifacts / _CACHE, progress=self.progress)
            )
        return self._prints[key]

    def attributes(self, spec: str) -> str | None:
        """Fingerprint of a data set's further columns, which results are broken down by; None: it has none."""
        if spec == RENDERED:
            return None  # part of the rendered images' own
        extra = self.open(spec).extra
        return fingerprint({name: dict(columns) for name, columns in extra.items()}) if extra else None

    def tree(self, folder: Path, *suffixes: str) -> str:
        """Fingerprint of the files under a folder: relative names and contents.

        Args:
            folder: The folder.
            suffixes: Only files that end in one of these; without any, all files.

        Raises:
            DataError: The folder is missing or some files cannot be read.
        """
        if not folder.is_dir():
            raise DataError("the folder does not exist", where=folder)
        names = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes)
        )
        return fingerprint(image_hashes(folder, names, cache=self.config.artifacts / _CACHE, progress=self.progress))

    @staticmethod
    def file(path: Path, what: str, error: type[UserError]) -> str:
        """SHA-256 of a file that the user named.

        Args:
            path: The file.
            what: What it is, for the message.
            error: The error to raise.

        Raises:
            UserError: It cannot be read; of the class `error`.
        """
        try:
            return sha256_file(at_home(path))
        except FileNotFoundError:
            raise error(f"{what} does not exist", where=path) from None
        except OSError as trouble:
            raise error(f"{what} cannot be read: {trouble.strerror or trouble}", where=path) from trouble

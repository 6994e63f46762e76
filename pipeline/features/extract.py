"""Extraction: the features of a data set's images in one file, row by row, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ExtractConfig
from pipeline.datasets.images import read_image
from pipeline.datasets.records import Dataset, Record
from pipeline.datasets.registry import open_dataset
from pipeline.errors import DataError, ImageError, Rejected
from pipeline.features.embedder import EmbeddedBatch, Embedder, ImageInput, embed
from pipeline.formats.checkpoint import BUILTIN
from pipeline.formats.feature_file import (
    ARRAYS,
    FeatureFile,
    feature_layout,
    open_features,
    write_npz,
)
from pipeline.formats.features import Features
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import FAILED, OK, PENDING, RowWriter, open_or_create
from pipeline.runtime.device import device_label, has_native_bfloat16
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.process_group import RankInfo, broadcast, gather, process_group
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.output import output

_LOG = logging.getLogger("sgsfa.features")
_LISTED = 3


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        total: Images asked for.
        done: Images with features.
        failed: Images that could not be read.
        seconds: Duration of this run.
        images_per_second: Rate of this run, decoding included; 0 where nothing was to do.
        resumed: Images that an earlier run had finished.
        device: Where the network ran.
    """

    total: int
    done: int
    failed: tuple[Rejected, ...]
    seconds: float
    images_per_second: float
    resumed: int
    device: str


def extract_file(
    out: Path,
    *,
    dataset: Dataset,
    records: Sequence[Record],
    checkpoint: Path | str,
    config: ExtractConfig,
    as_npz: bool = False,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Extract a stand-alone features file, or complete the one at `out`; it appears when it is complete.

    See `extract` for the other arguments. A NumPy archive (`as_npz`) is always extracted in full.

    Raises:
        LockedError: Another process builds `out`.
        UserError: As for `extract`.
    """
    with process_group() as ranks:
        if not ranks.is_main:
            return extract(out, dataset=dataset, records=records, checkpoint=checkpoint, config=config)
        with output(out, "features file") as partial:
            interrupted = partial.exists()
            report = extract(
                partial,
                dataset=dataset,
                records=records,
                checkpoint=checkpoint,
                config=config,
                published=None if as_npz else out,
                progress=progress,
            )
            if as_npz:
                write_npz(out, FeatureFile.open(partial).load())
                partial.unlink()
            elif not interrupted and out.exists() and report.resumed == report.total:
                partial.unlink()  # a copy without changes
        return report


def extract(
    path: Path,
    *,
    dataset: Dataset,
    records: Sequence[Record],
    checkpoint: Path | str,
    config: ExtractConfig,
    published: Path | None = None,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Extract the features of images into the file at `path`, or resume it.

    Rows are written batch by batch and survive the death of the process. Batches are cut from the list of records, so a
    resumed extraction ends in the same bytes as an undisturbed one. Images that failed are tried again if they can be
    read now. Under torchrun all processes call this and embed their share of the batches; rank 0 writes.

    Args:
        path: The features file, in an existing folder.
        dataset: The images.
        records: Which images, in the order of the file's rows.
        checkpoint: The trained network: a file, or `builtin`.
        config: Precision, flip averaging, device and batch size.
        published: A finished features file whose rows are taken over if `path` does not exist.
        progress: Receives progress.

    Raises:
        DataError: There are no images, or none can be read.
        WeightsError: The checkpoint is missing or damaged, or the training diverged.
        FormatError: The existing file was created for other images or with other settings, or is damaged.
        DeviceError: The device does not exist or its memory is exhausted.
        ArtifactError: The file cannot be written.
    """
    if not records:
        raise DataError(f"{dataset.name} has no images to extract features from", where=dataset.root)
    begin = time.monotonic()
    with process_group() as ranks, memory_advice("extract", config):
        embedder = Embedder.load(checkpoint, config, ranks)
        work = _Work(embedder, [dataset.path_of(record) for record in records], config.batch_size, ranks)
        if not ranks.is_main:
            work.share()
            return broadcast(ExtractReport(0, 0, (), 0.0, 0.0, 0, ""))
        layout = feature_layout(
            **_ids(records),
            thresholds=embedder.thresholds,
            part_dim=embedder.part_dim,
            global_dim=embedder.global_dim,
            notes=dataset.notes,
        )
        if config.amp == "off" and embedder.device.type == "cpu" and has_native_bfloat16():
            _LOG.info(
                "this CPU computes bfloat16 natively: extract.amp=bf16 may be faster (1.4 to 1.7 times as fast for "
                "the built-in network on one core); features then differ by some per cent"
            )
        with open_or_create(path, layout, _provenance(dataset, embedder), published=published) as writer:
            resumed = work.write(writer, progress)
            failed = tuple(Rejected(records[row].path, reason) for row, reason in writer.reasons().items())
        _warn_of_unreadable(failed, len(records), dataset)
        seconds = time.monotonic() - begin
        return broadcast(
            ExtractReport(
                total=len(records),
                done=len(records) - len(failed),
                failed=failed,
                seconds=round(seconds, 3),
                images_per_second=round((len(records) - resumed) / max(seconds, 1e-9), 2),
                resumed=resumed,
                device=device_label(embedder.device),
            )
        )


def embed_records(
    dataset: Dataset,
    records: Sequence[Record],
    checkpoint: Path | str = BUILTIN,
    config: ExtractConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> Features:
    """Embed images of a data set in memory, with their ids; unreadable ones are left out and logged.

    See `extract` for the arguments.

    Raises:
        DataError: There are no images, or none can be read.
        WeightsError: The checkpoint is missing or damaged, or the training diverged.
        DeviceError: The device does not exist or its memory is exhausted.
    """
    config = config or ExtractConfig()
    embedder = Embedder.load(checkpoint, config)
    with memory_advice("extract", config), progress.task("embed", total=len(records)) as task:
        batches = []
        for batch in embedder.batches([dataset.path_of(record) for record in records]):
            batches.append(batch)
            task.advance(len(batch.readable))
    readable = np.concatenate([np.empty(0, np.bool_), *(batch.readable for batch in batches)])
    reasons = [reason for batch in batches for reason in batch.reasons.values()]
    lost = [record.path for record, good in zip(records, readable, strict=True) if not good]
    _warn_of_unreadable(list(map(Rejected, lost, reasons)), len(records), dataset)
    return Features.from_arrays(
        **{name: np.concatenate([batch.arrays[name] for batch in batches])[readable] for name in ARRAYS},
        thresholds=embedder.thresholds,
        **_ids([record for record, good in zip(records, readable, strict=True) if good]),
        provenance=_provenance(dataset, embedder),
    )


def embed_for_search(
    query: Features | Sequence[ImageInput],
    gallery: Features | Dataset | Path | str,
    checkpoint: Path | str = BUILTIN,
    config: ExtractConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> tuple[Features, FeatureFile | Features]:
    """Open the two sides of a search, embedding what is not features yet.

    Args:
        query: Features, or images.
        gallery: Features, a features file of any size, a data set, or what `open_dataset` opens.
        checkpoint: The trained network: a file, or `builtin`.
        config: Precision, flip averaging, device and batch size; None: the defaults.
        progress: Receives progress.

    Raises:
        SgsfaError: An image, the gallery or the checkpoint cannot be used.
    """
    config = config or ExtractConfig()
    ready: FeatureFile | Features | None = gallery if isinstance(gallery, Features) else None
    if isinstance(gallery, str | Path) and Path(gallery).is_file():
        ready = open_features(Path(gallery))
    if not isinstance(query, Features):
        # Features of one view and of both views are not comparable; the gallery's exist already.
        flip = config.flip if ready is None else bool(ready.provenance.values.get("flip", config.flip))
        query = embed(query, checkpoint, config.model_copy(update={"flip": flip}))
    if ready is None:
        dataset = gallery if isinstance(gallery, Dataset) else open_dataset(str(gallery), expect_counts=False)
        ready = embed_records(dataset, dataset.split("gallery", "all"), checkpoint, config, progress=progress)
    return query, ready


@dataclass(frozen=True, slots=True)
class _Work:
    """The batches of an extraction: cut at multiples of the batch size, dealt to the ranks in turn."""

    embedder: Embedder
    paths: Sequence[Path]
    size: int
    ranks: RankInfo

    def write(self, writer: RowWriter, progress: Progress) -> int:
        """Embed and write all pending rows, on rank 0; returns the number of rows that an earlier run had finished."""
        self._retry_readable(writer)
        total = len(self.paths)
        batches = range(0, total, self.size)
        starts = [start for start in batches if (writer.status[start : start + self.size] == PENDING).any()]
        starts = broadcast(starts)
        resumed = total - sum(min(self.size, total - start) for start in starts)
        if resumed and starts:
            _LOG.info("resuming after %s of %s images", f"{resumed:,}", f"{total:,}")
        with progress.task("extract", total=total, done=resumed) as task:
            for start, batch in self._embedded(starts):
                status = np.where(batch.readable, OK, FAILED).astype(np.uint8)
                writer.write(start, batch.arrays, status, {start + row: text for row, text in batch.reasons.items()})
                task.advance(len(status))
        writer.finish()
        return resumed

    def share(self) -> None:
        """Embed this rank's share of the batches and send them to rank 0."""
        for _ in self._embedded(broadcast([])):
            pass

    def _retry_readable(self, writer: RowWriter) -> None:
        """Make failed rows pending again whose image can be read now."""
        rows = [row for row in np.flatnonzero(writer.status == FAILED).tolist() if _readable(self.paths[row])]
        if rows:
            writer.status[rows] = PENDING
            _LOG.info("trying again %s images that failed before and can be read now", f"{len(rows):,}")

    def _embedded(self, starts: Sequence[int]) -> Iterator[tuple[int, EmbeddedBatch]]:
        """Yield all batches with their first rows on rank 0, nothing elsewhere."""
        own = starts[self.ranks.rank :: self.ranks.world_size]
        batches = self.embedder.batches([path for start in own for path in self.paths[start : start + self.size]])
        for first in range(0, len(starts), self.ranks.world_size):
            together = starts[first : first + self.ranks.world_size]
            batch = next(batches) if self.ranks.rank < len(together) else None
            for start, gathered in zip(together, gather(batch), strict=False):
                assert gathered is not None
                yield start, gathered


def _ids(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "names": [record.path for record in records],
        "pids": [record.pid for record in records],
        "camids": [record.camid for record in records],
        "splits": [record.split for record in records],
    }


def _provenance(dataset: Dataset, embedder: Embedder) -> Provenance:
    return Provenance({**embedder.provenance.values, "data": f"{dataset.kind}:{dataset.name}"})


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except ImageError:
        return False
    return True


def _warn_of_unreadable(failed: Sequence[Rejected], total: int, dataset: Dataset) -> None:
    listed = ", ".join(f"{each.path} ({each.reason})" for each in failed[:_LISTED])
    listed += ", ..." if len(failed) > _LISTED else ""
    if len(failed) == total:
        raise DataError(f"none of the {total:,} images can be read: {listed}", where=dataset.root)
    if failed:
        _LOG.warning("%s of %s images cannot be read: %s", f"{len(failed):,}", f"{total:,}", listed)

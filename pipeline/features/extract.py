"""Extraction: the features of a data set's images into one file, resumable batch by batch."""

from __future__ import annotations

import contextlib
import glob
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ExtractConfig
from pipeline.datasets.images import read_image
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError, FormatError, ImageError, Rejected
from pipeline.features.network import BATCH_SIZE, FeatureNetwork
from pipeline.formats.checkpoint import read_meta
from pipeline.formats.features import FeatureFile, FeatureHeader, Features, FeatureWriter
from pipeline.runtime.device import device_label
from pipeline.runtime.files import sha256_file
from pipeline.runtime.process_group import RankInfo, barrier, broadcast, process_group, rank_info
from pipeline.runtime.progress import SILENT, Progress, Task
from pipeline.store.place import file_place, smaller_batches_advised

_REJECTED = "rejected"
"""Attribute of a features file that lists the images which have no row."""

_KEPT = ("batch_size", "notes")
"""Attributes that a resumed extraction takes from its file: sums round differently in other batches, and notes may
name the place where a data set lay. They do not say what the features are."""

_TOLD = ("epochs", "seed")
"""Attributes that say more of the checkpoint, which its hash tells apart already."""

_BLOCK = 4096


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        total: Images asked for.
        done: Images with features.
        failed: Images that could not be read; they have no row in the file.
        seconds: Time of this run; an earlier one that was killed is not counted.
        images_per_second: Of this run, decoding included.
        resumed: Rows that an earlier run had written.
        device: Where.
    """

    total: int
    done: int
    failed: tuple[Rejected, ...]
    seconds: float
    images_per_second: float
    resumed: int
    device: str


def extract(
    out: Path,
    *,
    dataset: Dataset,
    records: Sequence[Record],
    checkpoint: Path,
    config: ExtractConfig,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Write the features of images to a file.

    Work goes on in `out` with `.partial` behind its name. Batches are cut from the list of records, not from what is
    left of it, so a run that was killed goes on with the next batch, of the size that it was begun with, and ends with
    the same bytes as an undisturbed one. Under torchrun all processes call this and share the batches; rank 0 joins
    their parts into the one file.

    Args:
        out: The features file.
        dataset: Where the images lie.
        records: Which images, in the order of the file's rows.
        checkpoint: The trained network.
        config: Precision, flip averaging, device, batch size.
        progress: Where to report.

    Raises:
        DataError: There are no images, or none can be read.
        WeightsError: The checkpoint is missing or damaged, or the network diverged.
        FormatError: `out` or an unfinished file beside it is of other work, or no file can be made there.
        LockedError: Another process extracts to `out`.
        DeviceError: The device is not there or its memory is exhausted.
        ArtifactError: The file cannot be written.
    """
    if not records:
        raise DataError(f"{dataset.name} has no images to extract features from", where=dataset.root)
    origin = _origin(dataset, checkpoint, config)
    with process_group() as ranks, _place(out, ranks, progress):
        # By rank 0 alone, because the processes must agree on who does which batches.
        finished = broadcast(_finished(out, dataset, records, origin) if ranks.is_main else None)
        if finished is not None:
            progress.note(f"{out} is complete, nothing to do")
            return finished
        kept = broadcast(_begun(out, origin) if ranks.is_main else {})
        config = config.model_copy(update={"batch_size": kept.get("batch_size", config.batch_size)})

        def holding() -> Iterable[Path]:
            begun = _begun_files(out)
            return begun if _bind(begun) else ()

        with smaller_batches_advised(BATCH_SIZE, config.batch_size, holding):
            return _extract(
                out,
                dataset=dataset,
                records=tuple(records),
                checkpoint=checkpoint,
                config=config,
                origin=origin | kept,
                progress=progress,
            )


def _place(out: Path, ranks: RankInfo, progress: Progress) -> contextlib.AbstractContextManager[object]:
    return file_place(out, "features file", "features.h5", progress) if ranks.is_main else contextlib.nullcontext()


def embed(paths: Sequence[Path], checkpoint: Path, config: ExtractConfig) -> Features:
    """Features of a few images, in memory; for searching and comparing.

    Args:
        paths: Image files.
        checkpoint: The trained network.
        config: Precision, flip averaging, device, batch size.

    Returns:
        Features with the paths as names, identities and cameras unknown, split `all`.

    Raises:
        DataError: Some of the images cannot be read; the first of them are named.
        WeightsError: The checkpoint is missing or damaged.
    """
    network = FeatureNetwork.load(checkpoint, config, RankInfo())
    found = list(network.batches(paths))
    failed = [each for batch in found for each in batch.failed]
    if failed or not found:
        listed = "; ".join(f"{each.path}: {each.reason}" for each in failed[:5]) or "none was given"
        raise DataError(f"{len(failed)} of {len(paths)} images cannot be used: {listed}")
    return Features(
        parts=np.concatenate([each.parts for each in found]),
        global_feature=np.concatenate([each.global_feature for each in found]),
        visibility=np.concatenate([each.visibility for each in found]),
        thresholds=network.meta.threshold_array(),
        names=np.array([str(path) for path in paths], dtype=np.str_),
        pids=np.full(len(paths), -1, np.int64),
        camids=np.full(len(paths), -1, np.int64),
        splits=np.full(len(paths), "all", dtype=np.str_),
        attributes={"checkpoint_sha256": sha256_file(checkpoint), "flip": config.flip},
    )


def _extract(
    out: Path,
    *,
    dataset: Dataset,
    records: tuple[Record, ...],
    checkpoint: Path,
    config: ExtractConfig,
    origin: Mapping[str, Any],
    progress: Progress = SILENT,
) -> ExtractReport:
    place = rank_info()
    started = time.monotonic()
    network = FeatureNetwork.load(checkpoint, config, place)
    mine = _share(len(records), config.batch_size, place)
    path = out.with_name(out.name + ".partial")
    if place.world_size > 1:
        path = out.with_name(f"{out.name}.part{place.rank}-of-{place.world_size}.partial")
    work = _Work(path, dataset, records[mine], network, origin, progress, alone=place.world_size == 1)
    resumed = work.resumed
    if resumed:
        progress.note(f"extraction goes on after {resumed:,} of {len(records):,} images")
    with progress.task("extract", total=len(records[mine]), done=resumed) as task:
        work.run(task, config.batch_size)
    if place.world_size > 1:
        barrier()
        if place.is_main:
            _join(out, dataset, records, network, origin, config.batch_size, place)
        barrier()
    failed = work.failed if place.world_size == 1 or not place.is_main else _rejected_in(out)
    if place.is_main:
        if place.world_size == 1:
            path.replace(out)
            _remove_parts(out)
        if failed:
            progress.warn(f"{len(failed):,} of {len(records):,} images cannot be read and have no features")
    seconds = time.monotonic() - started
    done = len(records) - len(failed)
    return ExtractReport(
        total=len(records),
        done=done,
        failed=failed,
        seconds=round(seconds, 3),
        images_per_second=round((len(records[mine]) - resumed) * place.world_size / max(seconds, 1e-9), 2),
        resumed=resumed,
        device=device_label(network.device),
    )


def _origin(dataset: Dataset, checkpoint: Path, config: ExtractConfig) -> dict[str, Any]:
    """Where features come from, for the file's attributes."""
    meta = read_meta(checkpoint)
    return {
        "checkpoint_sha256": sha256_file(checkpoint),
        "model": meta.model.kind,
        "backbone": meta.model.backbone,
        "trained_on": meta.trained_on,
        "epochs": meta.epochs,
        "seed": meta.seed,
        "data": f"{dataset.kind}:{dataset.name}",
        "flip": config.flip,
        "amp": config.amp,
        "batch_size": config.batch_size,
        "notes": list(dataset.notes),
    }


def _begun(out: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What unfinished files of the same work say of themselves that a continuation keeps; nothing where none is.

    Files without a row bind nobody and are cleared away: a batch that was too large for the device leaves such ones.

    Raises:
        FormatError: One is of another checkpoint or other settings; it would be cleared away at the end.
    """
    kept: dict[str, Any] = {}
    begun = _begun_files(out)
    for path, opened in begun.items():
        if (difference := _difference(opened.attributes, origin)) is not None:
            raise _in_the_way(path, f"unfinished, begun with {difference}")
        kept = kept or {key: opened.attributes[key] for key in _KEPT if key in opened.attributes}
    if not _bind(begun):
        for path in begun:
            path.unlink()
        return {}
    return kept


def _bind(begun: Mapping[Path, FeatureFile]) -> bool:
    """Whether unfinished files hold work, which was done in batches of their size."""
    return any(opened.done or _lost(opened) for opened in begun.values())


def _begun_files(out: Path) -> dict[Path, FeatureFile]:
    """The unfinished files beside `out`; without damaged ones, of which whoever goes on with them says so."""
    pattern = glob.escape(out.name)
    found = {}
    for path in sorted((*out.parent.glob(f"{pattern}.partial"), *out.parent.glob(f"{pattern}.part*-of-*.partial"))):
        with contextlib.suppress(FormatError):
            found[path] = FeatureFile.open(path, allow_partial=True)
    return found


def _meaning(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in (*_KEPT, *_TOLD, _REJECTED)}


def _difference(attributes: Mapping[str, Any], origin: Mapping[str, Any]) -> str | None:
    """The first setting in which a file differs from what is to be done, in words; None where there is none."""
    was, wanted = _meaning(attributes), _meaning(origin)
    key = next((key for key in sorted({*was, *wanted}) if was.get(key) != wanted.get(key)), None)
    return None if key is None else f"{key} = {was.get(key)!r}, not {wanted.get(key)!r}"


def _finished(
    out: Path, dataset: Dataset, records: Sequence[Record], origin: Mapping[str, Any]
) -> ExtractReport | None:
    """The report of an extraction that has been done; None where there is none, or one that can be completed now.

    Raises:
        FormatError: There is another file.
    """
    if not out.exists():
        return None
    try:
        opened = FeatureFile.open(out)
    except FormatError as error:
        raise _in_the_way(out, f"that cannot be gone on with: {error.message}") from error
    if (difference := _difference(opened.attributes, origin)) is not None:
        raise _in_the_way(out, f"made with {difference}")
    if not _is_of(opened, records):
        raise _in_the_way(out, "made of other images, identities, cameras or splits")
    lost = _lost(opened)
    if _any_readable(dataset, [records[row] for row in lost]):
        return None
    return ExtractReport(len(records), opened.total, tuple(lost.values()), 0.0, 0.0, opened.total, "")


def _lost(opened: FeatureFile) -> dict[int, Rejected]:
    """The images that a file has no row for, because they could not be read, by their places among the records."""
    return {int(row): Rejected(name, reason) for row, name, reason in opened.attributes.get(_REJECTED, [])}


def _is_of(opened: FeatureFile, records: Sequence[Record]) -> bool:
    """Whether a file is of these records; of an unfinished one, the rows that are written are compared."""
    lost = _lost(opened)
    if any(row >= len(records) or records[row].path != each.path for row, each in lost.items()):
        return False
    kept = [record for row, record in enumerate(records) if row not in lost]
    written = kept[: opened.done]
    pids, camids, splits = opened.roles()
    return (
        len(kept) == opened.total
        and opened.names().tolist() == [record.path for record in written]
        and pids.tolist() == [record.pid for record in written]
        and camids.tolist() == [record.camid for record in written]
        and splits.tolist() == [record.split for record in written]
    )


def _in_the_way(out: Path, what: str) -> FormatError:
    return FormatError(
        f"there is a file already, {what}",
        where=out,
        expected="the same images, checkpoint and settings, or no file",
        hint="delete it or choose another name",
    )


def _any_readable(dataset: Dataset, records: Iterable[Record]) -> bool:
    """Whether some of the images that were found unreadable can be read now."""
    for record in records:
        with contextlib.suppress(ImageError):
            read_image(dataset.path_of(record))
            return True
    return False


class _Work:
    """The features of some records into one file, from where an earlier run left it."""

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        records: tuple[Record, ...],
        network: FeatureNetwork,
        origin: Mapping[str, Any],
        progress: Progress,
        *,
        alone: bool,
    ) -> None:
        self._path, self._dataset, self._records = path, dataset, records
        self._network, self._origin, self._alone = network, origin, alone
        self._rejected: dict[int, str] = {}
        opened = FeatureFile.open(path, allow_partial=True) if path.is_file() else None
        if opened is not None and not _is_of(opened, records):
            opened = None  # somebody else's, which is told when it is to be gone on with
        if opened is not None:
            # What was found unreadable before is not in the file's list of names.
            self._rejected = {row: each.reason for row, each in _lost(opened).items()}
            if _any_readable(dataset, [records[row] for row in self._rejected]):
                # The disk was away, or somebody has mended them: they need rows, and the file has none for them.
                progress.note(f"images that could not be read can be read now: {path} is begun anew")
                path.unlink()
                opened, self._rejected = None, {}
        self.resumed = 0 if opened is None else opened.done

    @property
    def failed(self) -> tuple[Rejected, ...]:
        """The images that have no row."""
        return tuple(Rejected(self._records[row].path, reason) for row, reason in sorted(self._rejected.items()))

    def run(self, task: Task, batch_size: int) -> None:
        """Write all rows that are missing.

        Raises:
            DataError: Not one image can be read, and there are no other processes that may have better ones.
        """
        while not self._run_until_rejected(task, batch_size):
            pass

    def _run_until_rejected(self, task: Task, batch_size: int) -> bool:
        """Write rows; False when an image turned out unreadable, after the file was laid out anew without it."""
        kept = [row for row in range(len(self._records)) if row not in self._rejected]
        if self._alone and not kept:
            raise _none_readable(self._dataset, self.failed)
        with FeatureWriter.begin(self._path, self._header(kept)) as writer:
            if writer.done == writer.total:
                writer.finish()
                return True
            following = kept[writer.done]
            start = following // batch_size * batch_size
            paths = [self._dataset.path_of(record) for record in self._records[start:]]
            for batch in self._network.batches(paths):
                new = {
                    int(row) + start: each.reason for row, each in zip(batch.failed_index, batch.failed, strict=True)
                }
                if not new.keys() <= self._rejected.keys():
                    self._rejected |= new
                    break
                fresh = batch.index + start >= following
                writer.append(batch.parts[fresh], batch.global_feature[fresh], batch.visibility[fresh])
                task.advance(int(fresh.sum()))
            else:
                writer.finish()
                return True
        self._lay_out_anew()
        return False

    def _lay_out_anew(self) -> None:
        """The same rows in a file that has no place for the images found unreadable."""
        kept = [row for row in range(len(self._records)) if row not in self._rejected]
        if not kept:
            self._path.unlink()
            return
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.unlink(missing_ok=True)
        with FeatureWriter.begin(fresh, self._header(kept)) as writer:
            for block in FeatureFile.open(self._path, allow_partial=True).blocks(_BLOCK):
                writer.append(block.parts, block.global_feature, block.visibility)
        fresh.replace(self._path)

    def _header(self, kept: Sequence[int]) -> FeatureHeader:
        rejected = [[row, self._records[row].path, reason] for row, reason in sorted(self._rejected.items())]
        return _header([self._records[row] for row in kept], self._network, self._origin, rejected)


def _header(
    records: Sequence[Record], network: FeatureNetwork, origin: Mapping[str, Any], rejected: Sequence[Sequence[Any]]
) -> FeatureHeader:
    return FeatureHeader(
        names=[record.path for record in records],
        pids=np.array([record.pid for record in records], dtype=np.int64),
        camids=np.array([record.camid for record in records], dtype=np.int64),
        splits=[record.split for record in records],
        part_dim=network.part_dim,
        global_dim=network.global_dim,
        thresholds=network.meta.threshold_array(),
        attributes={**origin, _REJECTED: [list(each) for each in rejected]},
    )


def _share(count: int, batch_size: int, place: RankInfo) -> slice:
    """This process's records: whole batches of the common list, about equally many for each."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // place.world_size for rank in (place.rank, place.rank + 1))
    return slice(first * batch_size, min(last * batch_size, count))


def _join(
    out: Path,
    dataset: Dataset,
    records: tuple[Record, ...],
    network: FeatureNetwork,
    origin: Mapping[str, Any],
    batch_size: int,
    place: RankInfo,
) -> None:
    """Make the one file of the parts that the processes wrote."""
    shares = [_share(len(records), batch_size, RankInfo(rank, place.world_size)) for rank in range(place.world_size)]
    parts = [out.with_name(f"{out.name}.part{rank}-of-{place.world_size}.partial") for rank in range(place.world_size)]
    files = [FeatureFile.open(part) for part in parts]
    rejected = [
        [int(row) + share.start, name, reason]
        for share, file in zip(shares, files, strict=True)
        for row, name, reason in file.attributes[_REJECTED]
    ]
    lost = {row for row, _, _ in rejected}
    kept = [record for row, record in enumerate(records) if row not in lost]
    if not kept:
        # Else the next run would take the parts up, and find them finished.
        _remove_parts(out)
        raise _none_readable(dataset, [Rejected(name, reason) for _, name, reason in rejected])
    path = out.with_name(out.name + ".partial")
    path.unlink(missing_ok=True)
    with FeatureWriter.begin(path, _header(kept, network, origin, rejected)) as writer:
        for file in files:
            for block in file.blocks(_BLOCK):
                writer.append(block.parts, block.global_feature, block.visibility)
        writer.finish()
    path.replace(out)
    _remove_parts(out)


def _remove_parts(out: Path) -> None:
    """Also what a run with another number of processes left unfinished."""
    for part in out.parent.glob(f"{glob.escape(out.name)}.part*-of-*.partial"):
        part.unlink()


def _none_readable(dataset: Dataset, failed: Sequence[Rejected]) -> DataError:
    return DataError(f"none of the {len(failed)} images can be read", where=dataset.root, expected=failed[0].reason)


def _rejected_in(out: Path) -> tuple[Rejected, ...]:
    return tuple(Rejected(name, reason) for _, name, reason in FeatureFile.open(out).attributes[_REJECTED])

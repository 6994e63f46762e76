"""Building a mask file: which rows are pending, in which order, and which workers compute them."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import MasksConfig
from pipeline.errors import DataError, Rejected
from pipeline.formats.masks import FAILED, OK, PENDING, open_mask_writer
from pipeline.formats.rows import RowWriter
from pipeline.masks.compute import Chunk, MaskRows, parse_chunk, parse_chunks, parse_in_worker, read_label_maps
from pipeline.masks.source import MaskSource, open_source
from pipeline.runtime.files import at_home
from pipeline.runtime.memory import memory_advice
from pipeline.runtime.parallel import parallel_map, worker_count
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.output import output

_LONG_BUILD = 30 * 60.0
_ESTIMATE_AFTER = 20
_MANY_EMPTY = 0.2  # share of images without a person that is worth a warning

_LOG = logging.getLogger("sgsfa.masks")


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What a build did: images in the file, with masks, and without.

    Attributes:
        resumed: Images that an earlier run had processed.
        seconds: Duration of this run.
        images_per_second: Masks of this run per second, loading of the parser excluded; 0 if it had nothing to do.
    """

    total: int
    done: int
    failed: tuple[Rejected, ...]
    resumed: int
    seconds: float
    images_per_second: float


def build_mask_file(
    out: Path,
    *,
    root: Path,
    names: Sequence[str],
    config: MasksConfig,
    label_maps: Path | None = None,
    progress: Progress = SILENT,
) -> MaskReport:
    """Build a stand-alone mask file, or complete the one at `out`; it appears when it is complete. See `build_masks`.

    Raises:
        LockedError: Another process builds `out`.
        UserError: As for `build_masks`.
    """
    with output(out, "mask file") as partial:
        interrupted = partial.exists()
        report = build_masks(
            partial, root=root, names=names, config=config, label_maps=label_maps, progress=progress, published=out
        )
        if not interrupted and out.exists() and report.resumed == report.total:
            partial.unlink()  # a copy without changes
    return report


def build_masks(
    path: Path,
    *,
    root: Path,
    names: Sequence[str],
    config: MasksConfig,
    label_maps: Path | None = None,
    progress: Progress = SILENT,
    published: Path | None = None,
) -> MaskReport:
    """Build the mask file at `path`, in an existing folder, or resume it.

    Rows appear one chunk at a time and survive the death of the process; a resumed build ends in the same arrays as an
    undisturbed one. Images that failed are tried again if they can be read now.

    Args:
        path: The mask file.
        root: Folder that names are relative to.
        names: Relative POSIX paths of the images; duplicates count once.
        config: Parser, grouping and how to run them; `file` and `allow_failed` are not used.
        label_maps: Label maps that come with the data set, for the parser `label-maps` without a folder.
        progress: Receives progress.
        published: A finished mask file whose rows are taken over if `path` does not exist.

    Raises:
        ConfigError: The parser, label set or grouping is not valid.
        DataError: There are no images, or none of them could be parsed.
        FormatError: The existing file was created for other images or with other settings, or is damaged.
        WeightsError: The parser's weights cannot be used.
        DeviceError: The device does not exist, or its memory is too small for the batch.
    """
    ordered = tuple(sorted(set(names)))
    if not ordered:
        raise DataError("no images to build masks of", where=root)
    worker_count(config.jobs)  # checked before the parser is loaded
    begin = time.monotonic()
    with memory_advice("masks", config):
        source = open_source(config, root, ordered, label_maps)
        with open_mask_writer(path, ordered, source.provenance, published=published) as writer:
            _retry_readable(writer, source)
            chunks = _pending_chunks(writer, source)
            resumed = len(ordered) - sum(len(chunk.names) for chunk in chunks)
            if resumed and chunks:
                _LOG.info("resuming after %s of %s images", f"{resumed:,}", f"{len(ordered):,}")
            loaded = time.monotonic()
            good = _write_rows(writer, source, chunks, progress)
            writer.finish()
            seconds = time.monotonic() - loaded
            failed = tuple(Rejected(ordered[row], reason) for row, reason in writer.reasons().items())
    if len(failed) == len(ordered):
        path.unlink()
        raise DataError(_none_parsed(failed), where=root)
    return MaskReport(
        total=len(ordered),
        done=len(ordered) - len(failed),
        failed=failed,
        resumed=resumed,
        seconds=time.monotonic() - begin,
        images_per_second=good / seconds if good and seconds > 0 else 0.0,
    )


def _retry_readable(writer: RowWriter, source: MaskSource) -> None:
    """Make failed rows pending again whose image or label map can be read now."""
    rows = [row for row in np.flatnonzero(writer.status == FAILED).tolist() if source.readable(source.names[row])]
    if rows:
        writer.status[rows] = PENDING
        _LOG.info("trying again %s images that failed before and can be read now", f"{len(rows):,}")


def _pending_chunks(writer: RowWriter, source: MaskSource) -> list[Chunk]:
    """The chunks with pending rows. They begin at multiples of the batch size, in every run.

    The batch size is the configured one, else that of the resumed file: sums round differently in other batches.
    """
    record = writer.provenance if source.config.batch_size == "auto" else source.provenance
    size = int(record.values["batch_size"] or 1)
    starts = range(0, len(source.names), size)
    pending = [start for start in starts if (writer.status[start : start + size] == PENDING).any()]
    return [Chunk(start, source.names[start : start + size]) for start in pending]


def _compute(source: MaskSource, chunks: Sequence[Chunk]) -> Iterator[MaskRows]:
    config, root, recipe = source.config, source.root, source.recipe
    if source.maps is None and config.backend == "none":
        assert source.parser is not None
        threads = min(worker_count(-1), 4 if source.on_cpu else 16)
        return parse_chunks(source.parser, chunks, root=root, recipe=recipe, threads=threads)
    work: Callable[[Chunk], MaskRows]
    needed = None
    if source.maps is not None:
        work = functools.partial(read_label_maps, source.maps, recipe)
    elif config.backend == "threading":
        assert source.parser is not None
        work = functools.partial(parse_chunk, source.parser, root, recipe)
    else:
        # Workers may run in another folder than this process.
        root, label_set = root.absolute(), config.label_set
        if label_set is not None and label_set.endswith(".toml"):
            label_set = str(Path(label_set).absolute())
        work = functools.partial(parse_in_worker, _absolute(config.parser), label_set, config.device, root, recipe)
        needed = next((root / name for chunk in chunks for name in chunk.names if (root / name).is_file()), None)
    return parallel_map(
        work, chunks, backend=config.backend, jobs=config.jobs, scheduler=config.scheduler, needed=needed
    )


def _absolute(spec: str) -> str:
    kind, colon, argument = spec.partition(":")
    path = at_home(argument)
    return f"{kind}:{path.absolute()}" if colon and path.is_file() else spec


def _write_rows(writer: RowWriter, source: MaskSource, chunks: Sequence[Chunk], progress: Progress) -> int:
    """Compute and write pending chunks; returns the number of masks."""
    pending, total = sum(len(chunk.names) for chunk in chunks), len(source.names)
    parsed = good = 0
    empty: list[str] = []
    warned = not source.on_cpu
    with progress.task("masks", total=total, done=total - pending) as task:
        begin = time.monotonic()
        for made in _compute(source, chunks):
            writer.write(made.start, made.columns, made.status, made.reasons)
            ok = made.status == OK
            no_person = np.flatnonzero(ok & ~made.columns["body"].any(axis=(1, 2)))
            empty += [source.names[made.start + row] for row in no_person.tolist()]
            parsed += len(made.status)
            good += int(ok.sum())
            task.advance(len(made.status))
            estimate = (pending - parsed) * (time.monotonic() - begin) / parsed
            if not warned and parsed >= _ESTIMATE_AFTER and estimate > _LONG_BUILD:
                warned = True
                _LOG.warning("%s", _advice(estimate, source.config))
    # Many empty masks mean a wrong label set or other images: a fifth of at least 20 images, or all of fewer.
    if empty and (good >= _ESTIMATE_AFTER or len(empty) == good) and len(empty) > _MANY_EMPTY * good:
        labels = f"; the label maps are read as {source.label_set}, and 255 as unlabelled" if source.maps else ""
        counts = f"{len(empty):,} of {good:,}"
        _LOG.warning("the masks of %s images are empty (no person found), e.g. %s%s", counts, empty[0], labels)
    return good


def _advice(seconds: float, config: MasksConfig) -> str:
    minutes = round(seconds / 60)
    span = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
    ways = ["a GPU (masks.device=cuda)", "several machines (masks.backend=dask)"]
    ways += ["the built-in parser"] if config.parser != "builtin" else []
    ways += ["masks.flip=false"] if config.flip else []
    return f"the masks will take about {span} more; faster: {', '.join(ways)}. An interrupted build can be resumed."


def _none_parsed(failed: Sequence[Rejected]) -> str:
    reasons = Counter(each.reason for each in failed).most_common(3)
    counts = "; ".join(f"{reason} ({count:,} images)" for reason, count in reasons)
    return f"none of the {len(failed):,} images can be used: {reasons[0][0] if len(reasons) == 1 else counts}"

"""Building a mask file: which rows are still to do, in which order, by whom; then published whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config import MasksConfig
from pipeline.datasets.images import read_image
from pipeline.errors import (
    ConfigError,
    DataError,
    DeviceError,
    FormatError,
    ImageError,
    Rejected,
)
from pipeline.formats.masks import DONE, FAILED, PENDING, MaskFile, MaskMeta, MaskWriter, has_rows
from pipeline.formats.provenance import fingerprint
from pipeline.masks.occupancy import RESIZE_RULE
from pipeline.masks.rows import (
    BATCH_SIZE,
    Chunk,
    LabelMapWorker,
    ParserWorker,
    Recipe,
    Rows,
    SharedWorker,
    fits,
    parse_chunks,
)
from pipeline.parsing import versions
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.labelmaps import LabelMaps
from pipeline.parsing.labels import LabelSet, load_grouping, load_label_set
from pipeline.parsing.parser import Parser, load_parser
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.device import memory_watched
from pipeline.runtime.files import at_home, atomic_write, fsync_path, sha256_file
from pipeline.runtime.parallel import parallel_map, worker_count
from pipeline.runtime.progress import SILENT, Progress
from pipeline.store.place import file_place, smaller_batches_advised

LABEL_MAPS = "label-maps"

_LONG_BUILD = 30 * 60.0
_ESTIMATE_AFTER = 20
# Input pixels a batch. On a CPU more only costs memory; a GPU is idle with less.
_CPU_PIXELS = 64 * 256 * 128
_GPU_PIXELS = 512 * 256 * 128
_LARGEST_BATCH = 512
_LABEL_MAP_CHUNK = 64
DEFAULT_LABEL_SET = "lip-20"
"""How label maps are read whose numbers nobody named."""

_MANY_EMPTY = 0.2  # Share of images in which nobody is found that is worth a warning.
_SAMPLE = 64  # Label maps by which a folder of them is known again.


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What a build did.

    Attributes:
        total: Images in the file.
        done: Images with masks.
        failed: Images without, and why.
        resumed: Images that an earlier run had finished.
        seconds: Duration of this run.
        images_per_second: Of this run, the loading of the parser not counted; 0 where nothing was to do.
    """

    total: int
    done: int
    failed: tuple[Rejected, ...]
    resumed: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows come from: a parser, or finished label maps."""

    meta: MaskMeta
    recipe: Recipe
    parser: Parser | None = None
    maps: LabelMaps | None = None
    on_cpu: bool = False


def build_masks(
    out: Path,
    *,
    root: Path,
    names: Sequence[str],
    config: MasksConfig,
    label_maps: Path | None = None,
    progress: Progress = SILENT,
) -> MaskReport:
    """Make the mask file of a list of images, or go on with one.

    Work goes into `out` with `.partial` at its end, which becomes `out` when all rows are done. A build that was
    killed goes on with the next row, and ends in the same arrays as one that was not. Images that could not be read
    are marked as failed; a later build tries them again.

    Args:
        out: The mask file.
        root: Folder that `names` are relative to.
        names: Relative POSIX paths of the images; duplicates count once.
        config: Parser, grouping and how to run it. `file` and `allow_failed` are the caller's affair.
        label_maps: Label maps that come with the data set, for the parser `label-maps` without a folder.
        progress: Where to report.

    Raises:
        ConfigError: The parser, label set or grouping is wrong.
        DataError: There are no images.
        FormatError: `out` or its partial file was made from other images or with other settings, or is damaged.
        WeightsError: The parser's weights cannot be used.
        DeviceError: The device is not there, or its memory is too small for the batch.
        LockedError: Another process is building `out`.
    """
    ordered = tuple(sorted(set(names)))
    if not ordered:
        raise DataError("there are no images to make masks of", where=root)
    begun = time.monotonic()
    worker_count(config.jobs)  # before anything is made
    with file_place(out, "mask file", "masks.h5", progress):
        return _build(out, ordered, root, config, label_maps, progress, begun)


def partial_path(out: Path) -> Path:
    """Where an unfinished build of `out` lies."""
    return out.with_name(out.name + ".partial")


def _build(
    out: Path,
    ordered: tuple[str, ...],
    root: Path,
    config: MasksConfig,
    label_maps: Path | None,
    progress: Progress,
    begun: float,
) -> MaskReport:
    source = _source(config, ordered, label_maps, progress)
    writer = _open(out, ordered, source, root, progress)
    if writer is None:
        masks = MaskFile.open(out).load()
        failed = _explain(masks.done, ordered, root, source)
        done = int((masks.done == DONE).sum())
        progress.note(f"{out} is complete, nothing to do")
        return MaskReport(len(ordered), done, failed, len(ordered), time.monotonic() - begun, 0.0)
    with writer:
        chunks = _pending_chunks(writer)
        resumed = len(ordered) - sum(len(chunk.names) for chunk in chunks)
        if resumed:
            progress.note(f"going on after {resumed} of {len(ordered)} images in {writer.path}")
        earlier = _explain(_outside(writer, chunks), ordered, root, source)
        loaded = time.monotonic()
        # Without rows the file binds nobody.
        with smaller_batches_advised(
            BATCH_SIZE, writer.meta.batch_size, lambda: [writer.path] if writer.done.any() else []
        ):
            failed = earlier + _run(writer, source, _rows(source, chunks, config, root), resumed, config, progress)
        seconds = time.monotonic() - loaded
        writer.finish()
        done = int((writer.done == DONE).sum())
    fsync_path(writer.path)
    writer.path.replace(out)
    fsync_path(out.parent)
    parsed = len(ordered) - resumed
    rate = parsed / seconds if parsed and seconds > 0 else 0.0
    rejected = tuple(sorted(failed, key=lambda item: item.path))
    return MaskReport(len(ordered), done, rejected, resumed, time.monotonic() - begun, rate)


class _Nobody:
    """Counts the images in which nobody is found: with a wrong label set, or of the wrong images, that is many."""

    def __init__(self) -> None:
        self._good, self._empty, self._first = 0, 0, ""

    def add(self, names: Sequence[str], made: Rows) -> None:
        """Count rows; `names` are those of all."""
        good = made.done == DONE
        empty = good & ~made.body.any(axis=(1, 2))
        self._good += int(good.sum())
        self._empty += int(empty.sum())
        if empty.any() and not self._first:
            self._first = names[made.start + int(empty.argmax())]

    def tell(self, source: _Source, progress: Progress) -> None:
        """Warn if they are many."""
        if self._good < _ESTIMATE_AFTER or self._empty <= _MANY_EMPTY * self._good:
            return
        hint = "`sgsfa masks preview` draws them"
        if source.maps is not None:
            hint += f"; the labels were read as {source.meta.label_set}, and a pixel of 255 as one without a label"
        progress.warn(f"nobody is found in {self._empty:,} of {self._good:,} images, {self._first} among them; {hint}")


# What is made, and from what --------------------------------------------------------------------------------------


def _source(config: MasksConfig, names: Sequence[str], own_maps: Path | None, progress: Progress) -> _Source:
    kind, _, argument = config.parser.partition(":")
    if kind == LABEL_MAPS:
        folder = at_home(argument) if argument else own_maps
        return _label_map_source(config, folder, names, progress, own=not argument)
    tune_allocator()
    parser = load_parser(config.parser, label_set=config.label_set, device=config.device)
    info = parser.info
    recipe = _recipe(config, info.label_set)
    device = _device(parser)
    meta = MaskMeta(
        parser=info.name,
        parser_version=info.version,
        weights_sha256=info.weights_sha256,
        label_set=info.label_set.name,
        grouping=recipe.grouping.name,
        groups_absent=recipe.grouping.absent,
        resize=RESIZE_RULE,
        input_size=parser.input_size,
        flip=config.flip,
        hard=config.hard,
        backend=info.backend,
        precision=info.precision,
        batch_size=_batch_size(parser, device, config, recipe),
        rules_sha256=_rules_hash(info.label_set, recipe, kind, argument),
    )
    return _Source(meta, recipe, parser=parser, on_cpu=device.type == "cpu")


def _label_map_source(
    config: MasksConfig, folder: Path | None, names: Sequence[str], progress: Progress, *, own: bool
) -> _Source:
    if folder is None:
        raise ConfigError(
            "this data set comes without label maps",
            where="masks.parser",
            expected=f"{LABEL_MAPS}:DIR, or a parser that makes them",
        )
    if config.flip:
        raise ConfigError("finished label maps cannot be averaged over mirror images", where="masks.flip")
    if config.label_set is None and not own:
        progress.warn(
            f"the label maps are read as {DEFAULT_LABEL_SET}, for no label set was named; --label-set says what the "
            "numbers in them mean"
        )
    label_set = load_label_set(config.label_set or DEFAULT_LABEL_SET)
    recipe = _recipe(config, label_set)
    maps = LabelMaps(folder, names, label_set)
    meta = MaskMeta(
        parser=LABEL_MAPS,
        parser_version=versions.LABEL_MAPS,
        weights_sha256="",
        label_set=label_set.name,
        grouping=recipe.grouping.name,
        groups_absent=recipe.grouping.absent,
        resize=RESIZE_RULE,
        input_size=(0, 0),
        flip=False,
        hard=config.hard,
        backend="files",
        precision="float32",
        batch_size=_LABEL_MAP_CHUNK,
        rules_sha256=_rules_hash(label_set, recipe),
        label_maps=_sampled(maps, names),
    )
    return _Source(meta, recipe, maps=maps)


def _rules_hash(label_set: LabelSet, recipe: Recipe, kind: str = "", argument: str = "") -> str:
    """Hash of what is made of a parser's numbers, which no name of it tells."""
    sidecar = sidecar_path(at_home(argument)) if kind in ("onnx", "torchscript") else None
    return fingerprint(
        {
            "label set": asdict(label_set),
            "grouping": asdict(recipe.grouping),
            "description": sha256_file(sidecar) if sidecar is not None and sidecar.is_file() else None,
        }
    )


def _sampled(maps: LabelMaps, names: Sequence[str]) -> tuple[str, ...]:
    """Hashes of a few label maps, empty where there is none: by these, a folder of other maps is known."""
    count = min(_SAMPLE, len(names))
    return tuple(_hash_of(maps, names[place * len(names) // count]) for place in range(count))


def _hash_of(maps: LabelMaps, name: str) -> str:
    try:
        return sha256_file(maps.find(name))[:16]
    except (FormatError, OSError):
        return ""  # told when its row is made


def _recipe(config: MasksConfig, label_set: LabelSet) -> Recipe:
    if config.hard and label_set.kind == "fields":
        raise ConfigError(f"the fields of {label_set.name} overlap: no pixel has one label", where="masks.hard")
    return Recipe(load_grouping(config.grouping, label_set), flip=config.flip, hard=config.hard)


def _device(parser: Parser) -> torch.device:
    """Where a parser computes: what it says, or where its output lies."""
    if parser.info.device:
        return torch.device(parser.info.device)

    def told() -> DeviceError:
        return DeviceError("not even one image fits into the memory of the parser's device", hint="use --device cpu")

    with torch.inference_mode(), memory_watched(None, told):
        return parser.parse(np.zeros((1, *parser.input_size, 3), np.uint8)).device


def _batch_size(parser: Parser, device: torch.device, config: MasksConfig, recipe: Recipe) -> int:
    """Images a forward: what was asked for, or what suits the device and fits into its memory."""
    if config.batch_size != "auto":
        return config.batch_size
    height, width = parser.input_size
    pixels = _CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS
    count = min(_LARGEST_BATCH, 1 << max(0, (pixels // (height * width)).bit_length() - 1))
    if device.type == "cpu":
        return count
    while not fits(parser, count, recipe):
        if count == 1:
            raise DeviceError(f"not even one image fits into the memory of {device}", hint="use --device cpu")
        count //= 2
    return count


# Which rows are still to do ---------------------------------------------------------------------------------------


def _open(out: Path, names: tuple[str, ...], source: _Source, root: Path, progress: Progress) -> MaskWriter | None:
    """A writer for the rows still to do, or None where `out` has them all."""
    partial = partial_path(out)
    if out.exists():
        finished = MaskFile.open(out)
        difference = finished.meta.difference(source.meta)
        if finished.names != names:
            difference = f"{len(finished)} images, of which {len(set(names) & set(finished.names))} are among these"
        if difference is not None:
            raise FormatError(
                f"there is a mask file already, made with {difference}",
                where=out,
                expected=f"the same parser, settings and {len(names)} images, or no file",
                hint="delete it or choose another name",
            )
        if not _readable_again(finished.load().done, names, root, source):
            return None
        # Killed while it copies, it must not leave half a file that looks like an unfinished build.
        with atomic_write(partial) as copy:
            shutil.copyfile(out, copy)
    # Without rows nothing is lost when other settings begin it anew.
    if not partial.exists() or not _has_rows(partial):
        return MaskWriter.create(partial, names, source.meta)
    writer = MaskWriter.resume(partial, names, source.meta)
    again = _readable_again(writer.done, names, root, source)
    if again:
        were = "1 image that had failed" if len(again) == 1 else f"{len(again)} images that had failed"
        progress.note(f"{were} can be read now")
        writer.done[again] = PENDING
    return writer


def _has_rows(partial: Path) -> bool:
    try:
        return has_rows(partial)
    except FormatError:
        return True  # damaged, which is told when it is resumed


def _pending_chunks(writer: MaskWriter) -> list[Chunk]:
    """The chunks with rows to do. They begin at multiples of the file's batch size, in every run."""
    size = writer.meta.batch_size
    starts = [start for start in range(0, len(writer.names), size) if (writer.done[start : start + size] == 0).any()]
    return [Chunk(start, writer.names[start : start + size]) for start in starts]


def _readable_again(done: np.ndarray, names: Sequence[str], root: Path, source: _Source) -> list[int]:
    """Rows that had failed and whose image or label map can be read now."""
    return [row for row in np.flatnonzero(done == FAILED).tolist() if _fault(names[row], root, source) is None]


def _explain(done: np.ndarray, names: Sequence[str], root: Path, source: _Source) -> tuple[Rejected, ...]:
    """The failed rows of an earlier run with their reasons, which the file does not hold."""
    rows = np.flatnonzero(done == FAILED).tolist()
    return tuple(Rejected(names[row], _fault(names[row], root, source) or "could not be read before") for row in rows)


def _fault(name: str, root: Path, source: _Source) -> str | None:
    try:
        if source.maps is not None:
            source.maps.read(name)
        else:
            read_image(root / name)
    except (ImageError, FormatError) as error:
        return error.message
    return None


def _outside(writer: MaskWriter, chunks: Sequence[Chunk]) -> np.ndarray:
    """`done` with the rows of `chunks` as pending."""
    done = writer.done.copy()
    for chunk in chunks:
        done[chunk.start : chunk.start + len(chunk.names)] = PENDING
    return done


# Doing them -------------------------------------------------------------------------------------------------------


def _rows(source: _Source, chunks: Sequence[Chunk], config: MasksConfig, root: Path) -> Iterator[Rows]:
    if source.maps is not None:
        worker = LabelMapWorker(source.maps, source.recipe)
        return parallel_map(worker, chunks, backend=config.backend, jobs=config.jobs, scheduler=config.scheduler)
    assert source.parser is not None
    if config.backend == "none":
        threads = min(worker_count(-1), 4 if source.on_cpu else 16)
        return parse_chunks(source.parser, chunks, root=root, recipe=source.recipe, threads=threads)
    if config.backend == "threading":
        shared = SharedWorker(source.parser, root, source.recipe)
        return parallel_map(shared, chunks, backend=config.backend, jobs=config.jobs)
    # Workers may run in another folder than this process.
    label_set = config.label_set
    if label_set is not None and label_set.endswith(".toml"):
        label_set = str(Path(label_set).absolute())
    remote = ParserWorker(_absolute(config.parser), label_set, config.device, root.absolute(), source.recipe)
    return parallel_map(remote, chunks, backend=config.backend, jobs=config.jobs, scheduler=config.scheduler)


def _absolute(spec: str) -> str:
    kind, colon, argument = spec.partition(":")
    path = at_home(argument)
    return f"{kind}:{path.absolute()}" if colon and path.is_file() else spec


def _run(
    writer: MaskWriter,
    source: _Source,
    rows: Iterator[Rows],
    resumed: int,
    config: MasksConfig,
    progress: Progress,
) -> tuple[Rejected, ...]:
    failed: list[Rejected] = []
    nobody = _Nobody()
    total = len(writer.names)
    warned = not source.on_cpu
    parsed = 0
    with progress.task("masks", total=total, done=resumed) as task:
        begun = time.monotonic()
        for made in rows:
            writer.write(made.start, made.parts, made.body, made.quality, made.done)
            failed += made.failed
            nobody.add(writer.names, made)
            parsed += len(made.done)
            task.advance(len(made.done))
            estimate = (total - resumed - parsed) * (time.monotonic() - begun) / parsed
            if not warned and parsed >= _ESTIMATE_AFTER and estimate > _LONG_BUILD:
                warned = True
                progress.warn(_advice(estimate, config))
    nobody.tell(source, progress)
    return tuple(failed)


def _advice(seconds: float, config: MasksConfig) -> str:
    minutes = round(seconds / 60)
    span = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
    ways = "a GPU (--device cuda), more machines (--backend dask)"
    if config.parser != "builtin":
        ways += ", or the built-in parser"
    if config.flip:
        ways += ", or no --flip"
    return f"the masks will take about {span} more; faster: {ways}. A build that is stopped goes on later."

"""The functions of `sgsfa`: thin, with paths as text or `Path` and settings by their configuration keys."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config import RunConfig, Section
from pipeline.config_file import load_config as _load_config
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.report import QUERIES
from pipeline.runtime.progress import SILENT, Progress
from sgsfa.datasets import from_records

if TYPE_CHECKING:
    from pipeline.datasets.records import Dataset
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.evaluation.explain import PairExplanation
    from pipeline.evaluation.report.model import Report
    from pipeline.evaluation.search import SearchResult
    from pipeline.features.embedder import Embedder, ImageInput
    from pipeline.features.export import ExportReport
    from pipeline.features.extract import ExtractReport
    from pipeline.formats.features import Features
    from pipeline.formats.masks import MaskFile
    from pipeline.masks.build import MaskReport
    from pipeline.matching.distance import MatchingRule
    from pipeline.stages.run import RunReport
    from pipeline.training.context import TeacherData
    from pipeline.training.report import TrainReport

S = TypeVar("S", bound=Section)
PathLike = str | Path
BUILTIN = "builtin"


def open_dataset(
    source: PathLike | Sequence[Mapping[str, Any]] | Any, *, root: PathLike = ".", expect_counts: bool = True
) -> Dataset:
    """Open a data set.

    Args:
        source: `KIND:PATH` (for example `market1501:/data/Market-1501`), a folder of images, a CSV file, or a table: a
            pandas frame or a list of mappings with `path`, `pid`, `camid` and `split`, of which only `path` is needed.
            A table may hold uint8 RGB arrays under `image` instead; they are written to `root` as PNG files.
        root: Folder that the paths of a table are relative to.
        expect_counts: Reject a known data set whose counts are not the published ones.

    Raises:
        DataError: It cannot be read, with every fault found.

    Examples:
        >>> dataset = open_dataset([{"path": "a.jpg", "pid": 1}, {"path": "b.jpg", "pid": 1}])
        >>> [record.path for record in dataset.split("all")]
        ['a.jpg', 'b.jpg']
    """
    from pipeline.datasets import registry

    if isinstance(source, str | Path):
        return registry.open_dataset(str(source), expect_counts=expect_counts)
    return from_records(source, Path(root))


def build_masks(out: PathLike, dataset: Dataset | PathLike, *, progress: bool = False, **settings: Any) -> MaskReport:
    """Build the part masks of a data set's training images, or of all images of a folder.

    Args:
        out: The mask file; an unfinished one is resumed.
        dataset: A data set, or what `open_dataset` opens.
        progress: Show progress bars.
        settings: Keys of the section `masks`: `parser`, `device`, ...

    Raises:
        SgsfaError: The data set, the parser or the file cannot be used.

    Examples:
        >>> build_masks("parts.h5", "photos").done
        4
    """
    from pipeline.datasets.records import unique_names
    from pipeline.masks.build import build_mask_file

    opened = _opened(dataset)
    config = _section("masks", settings).masks
    records = opened.split("train") or opened.records
    return build_mask_file(
        Path(out),
        root=opened.root,
        names=unique_names(records),
        config=config,
        label_maps=opened.label_maps,
        progress=_bars(progress),
    )


def read_masks(path: PathLike) -> MaskFile:
    """Read a mask file: arrays `parts` (N, 4, 16, 8) and `body` (N, 64, 32), uint8, and their image names.

    Raises:
        FormatError: It is not a mask file, or damaged.

    Examples:
        >>> masks = read_masks("masks.h5")
        >>> masks.parts.shape, masks.body.shape
        ((6, 4, 16, 8), (6, 64, 32))
    """
    from pipeline.formats.masks import MaskFile

    return MaskFile.open(Path(path))


def train(
    workdir: PathLike,
    dataset: Dataset | PathLike,
    *,
    masks: PathLike | None = None,
    preset: str = "strong",
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrainReport:
    """Train a network on the training split of a data set; an interrupted training resumes.

    Args:
        workdir: Folder of the results, `model.safetensors` among them.
        dataset: A data set, or what `open_dataset` opens.
        masks: Its mask file; a `baseline` needs none.
        preset: `strong`, `paper`, `baseline`, `finetune` or `demo`.
        settings: Values by configuration key, as in `{"train.epochs": 60, "model.backbone": "resnet50"}`.
        progress: Show progress bars.

    Raises:
        SgsfaError: The data, the masks, the configuration or the device cannot be used.

    Examples:
        >>> settings = {"train.epochs": 1, "train.identities": 2, "model.backbone": "mobilenet_v2"}
        >>> settings |= {"model.weights": "builtin", "model.height": 64, "model.width": 32}
        >>> train("run", "csv:dataset.csv", preset="baseline", settings=settings).identities
        2
    """
    from pipeline.training.run import train as run_training

    config = load_config(preset=preset, settings=settings)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    bars = _bars(progress)
    return run_training(
        folder,
        dataset=_opened(dataset),
        masks=None if masks is None else Path(masks),
        model=config.model,
        loss=config.loss,
        config=config.train,
        teacher=_open_teacher(config, bars),
        progress=bars,
    )


def _open_teacher(config: RunConfig, bars: Progress) -> TeacherData | None:
    from pipeline.stages.sources import RENDERED
    from pipeline.stages.train import open_teacher

    if config.teacher_spec is None:
        return None
    if config.teacher_spec == RENDERED:
        raise ConfigError(
            "only a run renders images for a mask teacher", where="train.teacher_data", expected="synthetic:DIR"
        )
    return open_teacher(open_dataset(config.teacher_spec), config.masks.grouping, bars)


def load_model(checkpoint: PathLike = BUILTIN, **settings: Any) -> Embedder:
    """Load a trained network; `.embed(images)` turns images into features.

    Args:
        checkpoint: A checkpoint file, or `builtin` for the model in this package.
        settings: Keys of the section `extract`: `device`, `amp`, `flip`, `batch_size`.

    Raises:
        WeightsError: The checkpoint is missing, damaged, or of another program.
        DeviceError: The device is not available.

    Examples:
        >>> model = load_model(device="cpu")
        >>> model.input_size
        (256, 128)
        >>> features = model.embed(["a.jpg", "b.jpg"])
        >>> features.parts.shape, features.visible.shape
        ((2, 7, 128), (2, 7))
    """
    from pipeline.features.embedder import Embedder

    return Embedder.load(checkpoint, _section("extract", settings).extract)


def extract(
    out: PathLike,
    dataset: Dataset | PathLike,
    checkpoint: PathLike = BUILTIN,
    *,
    progress: bool = False,
    **settings: Any,
) -> ExtractReport:
    """Write the features of a data set's query and gallery images to a file; an unfinished file is resumed.

    Args:
        out: The features file, `.h5` or `.npz`.
        dataset: A data set, or what `open_dataset` opens; of a folder, all images.
        checkpoint: A checkpoint file, or `builtin`.
        progress: Show progress bars.
        settings: Keys of the section `extract`.

    Raises:
        SgsfaError: The data set, the checkpoint or the file cannot be used.

    Examples:
        >>> report = extract("photos.h5", "photos")
        >>> report.done, report.failed
        (4, ())
    """
    from pipeline.features.extract import extract_file

    opened = _opened(dataset)
    return extract_file(
        Path(out),
        dataset=opened,
        records=opened.split("query", "gallery") or opened.records,
        checkpoint=checkpoint,
        config=_section("extract", settings).extract,
        as_npz=Path(out).suffix == ".npz",
        progress=_bars(progress),
    )


def distances(query: Features, gallery: Features, rule: str | MatchingRule = "shrunk") -> npt.NDArray[np.float32]:
    """Return the distance of every query to every gallery image: (Q, G) float32.

    Args:
        query: Features of Q images.
        gallery: Features of G images.
        rule: A matching rule or its name: `shrunk`, `mean`, `sum`, `query` or `all`.

    Raises:
        FormatError: The features have different dimensions.

    Examples:
        >>> import numpy as np
        >>> from sgsfa import Features
        >>> one = Features.from_arrays(global_feature=np.eye(2))
        >>> distances(one, one).round(2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    from pipeline.matching.distance import MatchingRule, distance_matrix

    if isinstance(rule, str):
        rule = MatchingRule.from_config(_section("matching", {"rule": rule}).matching)
    return distance_matrix(query, gallery, rule=rule)


def evaluate(
    features: Features | PathLike,
    dataset: Dataset | PathLike | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Evaluation:
    """Rank the gallery for every query and compute CMC, mAP, mINP and breakdowns; `.table()` and `.save()` the result.

    Args:
        features: Features with the splits `query` and `gallery`, or their file.
        dataset: Their images, for ranking figures and visible fractions.
        progress: Show progress bars.
        settings: Keys of the section `matching`: `rule`, `rerank`, `bootstrap`, ...

    Raises:
        SgsfaError: The features cannot be used, or no query has a match.

    Examples:
        >>> evaluation = evaluate("features.h5", "csv:dataset.csv", rule="mean")
        >>> evaluation.result.metrics.num_queries
        4
    """
    from pipeline.evaluation.evaluate import evaluate as run_evaluation

    return run_evaluation(
        Path(features) if isinstance(features, str) else features,
        dataset=None if dataset is None else _opened(dataset),
        config=_section("matching", settings).matching,
        progress=_bars(progress),
    )


def search(
    query: Features | Sequence[ImageInput] | PathLike,
    gallery: Features | Dataset | PathLike,
    k: int = 10,
    *,
    checkpoint: PathLike = BUILTIN,
    approximate: bool = False,
    progress: bool = False,
    **settings: Any,
) -> SearchResult:
    """Find the k nearest gallery images of each query.

    Args:
        query: Features, an image file, or a list of paths, PIL images or uint8 RGB arrays.
        gallery: Features, a features file of any size, a folder of images, or a data set.
        k: Gallery images per query.
        checkpoint: The network for images that are not features yet.
        approximate: Use an approximate index (extra `faiss`): faster in large galleries, may miss some.
        progress: Show progress bars.
        settings: Keys of the section `matching`.

    Raises:
        SgsfaError: An image, the gallery or the checkpoint cannot be used.

    Examples:
        >>> found = search("a.jpg", "photos", k=2)
        >>> [image.rank for image in found.queries[0].nearest]
        [1, 2]
    """
    from pipeline.evaluation.search import search_gallery
    from pipeline.features.extract import embed_for_search
    from pipeline.formats.features import Features

    config, bars = _section("matching", settings).matching, _bars(progress)
    images = [query] if isinstance(query, str | Path) else query
    opened = gallery if isinstance(gallery, Features | str | Path) else _opened(gallery)
    asked, others = embed_for_search(images, opened, checkpoint, progress=bars)
    return search_gallery(asked, others, k=k, config=config, approximate=approximate, progress=bars)


def compare(
    first: ImageInput | Features, second: ImageInput | Features, *, checkpoint: PathLike = BUILTIN, **settings: Any
) -> PairExplanation:
    """Compare two images: their distance, and what every part contributes to it.

    Args:
        first: A path, a PIL image, a uint8 RGB array, or the features of one image.
        second: Another.
        checkpoint: The network for images that are not features yet.
        settings: Keys of the section `matching`.

    Raises:
        SgsfaError: An image or the checkpoint cannot be used.

    Examples:
        >>> pair = compare("a.jpg", "a.jpg")
        >>> abs(round(pair.distance, 3))
        0.0
        >>> pair.parts[0].name
        'head'
    """
    from pipeline.evaluation.explain import explain_pair
    from pipeline.formats.features import Features
    from pipeline.matching.distance import MatchingRule

    rule = MatchingRule.from_config(_section("matching", settings).matching)
    if isinstance(first, Features) and isinstance(second, Features):
        return explain_pair(first, second, rule)
    if isinstance(first, Features) or isinstance(second, Features):
        raise DataError("features and an image to compare", expected="two images, or features of two images")
    both = load_model(checkpoint).embed([first, second])
    return explain_pair(both.select(slice(0, 1)), both.select(slice(1, 2)), rule)


def report(
    features: PathLike,
    dataset: Dataset | PathLike | None = None,
    *,
    out: PathLike = "report.html",
    checkpoint: PathLike | None = None,
    against: PathLike | None = None,
    queries: int = QUERIES,
    images: bool = True,
    progress: bool = False,
    **settings: Any,
) -> Report:
    """Write a page that shows what an evaluation found and why: one HTML file without outside references.

    Args:
        features: A features file with the splits `query` and `gallery`.
        dataset: Their images; None: no thumbnails.
        out: The page.
        checkpoint: The network that extracted the features, for its part masks.
        against: An earlier result to compare with: its folder or `result.json`.
        queries: Queries to store: the worst half by AP, the rest spread over all others.
        images: Store thumbnails; off for places where people must not be shown.
        progress: Show progress bars.
        settings: Keys of the section `matching`.

    Raises:
        SgsfaError: The features, the earlier result or the checkpoint cannot be used.

    Examples:
        >>> page = report("features.h5", "csv:dataset.csv", out="report.html", queries=50)
        >>> len(page.tests[0].queries)
        4
    """
    from pipeline.evaluation.report.page import save
    from pipeline.stages.report import Evaluated, ReportOptions, build_report

    page = build_report(
        [Evaluated(Path(features), None if dataset is None else _opened(dataset))],
        config=_section("matching", settings).matching,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        options=ReportOptions(None if against is None else Path(against), queries, images),
        title=f"Evaluation of {Path(features).name}",
        progress=_bars(progress),
    )
    save(page, Path(out))
    return page


def export(
    out: PathLike,
    checkpoint: PathLike = BUILTIN,
    *,
    flip: bool = False,
    single_vector: bool = False,
    fp16: bool = False,
) -> ExportReport:
    """Write a network as an ONNX model, which is kept if ONNX Runtime computes the same (extra `onnx`).

    Args:
        out: The model file; it must not exist.
        checkpoint: A checkpoint file, or `builtin`.
        flip: Average over each image and its mirror image.
        single_vector: Return one vector per image for trackers, from normalised (N, 3, H, W) images.
        fp16: Compute in float16.

    Raises:
        SgsfaError: The checkpoint or the file cannot be used, packages are missing, or the model computes otherwise.

    Examples:
        >>> export("model.onnx").outputs["parts"]
        (7, 128)
    """
    from pipeline.features.export import ExportOptions
    from pipeline.features.export import export as run_export

    return run_export(Path(out), checkpoint, ExportOptions(flip, single_vector, fp16))


def load_config(
    path: PathLike | None = None, *, preset: str | None = None, settings: Mapping[str, Any] | None = None
) -> RunConfig:
    """Load a configuration: defaults, then a preset, then a file, then single settings.

    Args:
        path: A TOML file.
        preset: `demo`, `strong`, `paper`, `baseline` or `finetune`.
        settings: Values by key, as in `{"train.epochs": 60}`.

    Raises:
        ConfigError: Keys or values are wrong; all of them are listed, each with the nearest known key.

    Examples:
        >>> load_config(preset="strong", settings={"train.epochs": 60}).train.epochs
        60
    """
    overrides = [f"{key}={json.dumps(_plain(value))}" for key, value in (settings or {}).items()]
    return _load_config(None if path is None else Path(path), preset=preset, overrides=overrides)


def run(
    config: RunConfig | PathLike,
    *,
    settings: Mapping[str, Any] | None = None,
    until: str | None = None,
    force: bool = False,
    progress: bool = False,
) -> RunReport:
    """Run all stages from images to metrics; only those that are missing or stale run.

    Args:
        config: A configuration, the name of a preset, or a TOML file.
        settings: Values by key; not with a ready `Config`.
        until: Last stage: `synth`, `masks`, `train`, `extract` or `eval`.
        force: Run all stages, even those that are up to date.
        progress: Show progress bars.

    Raises:
        SgsfaError: The configuration, the data or the device cannot be used.

    Examples:
        >>> done = run("strong", settings={"data.source": "csv:dataset.csv"}, until="masks")
        >>> [(outcome.stage, outcome.action) for outcome in done.stages]
        [('masks', 'ran')]
    """
    from pipeline.config_file import PRESETS
    from pipeline.stages.run import run_stages

    if isinstance(config, RunConfig):
        if settings:
            raise ConfigError("settings given for a ready configuration", hint="pass them to load_config")
    elif str(config) in PRESETS:
        config = load_config(preset=str(config), settings=settings)
    else:
        config = load_config(config, settings=settings)
    return run_stages(config, until=until, force=force, progress=_bars(progress))


def _opened(dataset: Dataset | PathLike | Any) -> Dataset:
    from pipeline.datasets.records import Dataset

    return dataset if isinstance(dataset, Dataset) else open_dataset(dataset)


def _section(name: str, settings: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with some keys of one section, whose errors name them."""
    return load_config(settings={f"{name}.{key}": value for key, value in settings.items()})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _bars(wanted: bool) -> Progress:
    if not wanted:
        return SILENT
    from rich.console import Console

    from sgsfa_cli.progress import Bars

    return Bars(Console(stderr=True))


def _make_audible() -> None:
    """Show notes and warnings on standard error unless logging is configured."""
    logger = logging.getLogger("sgsfa")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("sgsfa: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


_make_audible()

"""Extraction: right rows, rows of unreadable images left out, and the same bytes however it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import ExtractConfig, ModelConfig
from pipeline.datasets.images import read_resized, write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError, DeviceError, FormatError, LockedError, WeightsError
from pipeline.features import extract as extract_module
from pipeline.features import network as network_module
from pipeline.features.extract import embed, extract
from pipeline.features.network import FeatureNetwork
from pipeline.formats.checkpoint import CheckpointMeta
from pipeline.formats.features import FeatureFile
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.network import build_model
from pipeline.model.normalise import normalise
from pipeline.runtime.process_group import RankInfo
from pipeline.store.lock import locked

HEIGHT, WIDTH, COUNT, BATCH = 64, 32, 11, 4


def make_checkpoint(path: Path, **changes: object) -> Path:
    config = ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": "none", "height": HEIGHT, "width": WIDTH, "part_dim": 8} | changes
    )
    torch.manual_seed(0)
    model = build_model(config, 3)
    meta = CheckpointMeta(model=config, num_classes=3, thresholds=(0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1))
    save_checkpoint(path, model, meta)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model.safetensors")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    stream = np.random.default_rng(0)
    records = []
    for i in range(COUNT):
        name = f"images/{i:02d}.png"
        write_image(tmp_path / name, stream.integers(0, 256, (80, 40, 3), dtype=np.uint8))
        records.append(Record(name, i // 2, i % 2, "query" if i % 3 == 0 else "gallery"))
    return Dataset("folder", "few", tmp_path, tuple(records))


def config(**changes: object) -> ExtractConfig:
    return ExtractConfig.model_validate({"batch_size": BATCH, "device": "cpu"} | changes)


def run(out: Path, dataset: Dataset, checkpoint: Path, **changes: object):
    return extract(out, dataset=dataset, records=dataset.records, checkpoint=checkpoint, config=config(**changes))


@pytest.mark.parametrize("flip", [False, True])
def test_rows_are_what_the_network_says(tmp_path: Path, dataset: Dataset, checkpoint: Path, flip: bool) -> None:
    report = run(tmp_path / "f.h5", dataset, checkpoint, flip=flip)
    assert (report.total, report.done, report.failed) == (COUNT, COUNT, ())
    features = FeatureFile.open(tmp_path / "f.h5").load()
    assert features.names.tolist() == [record.path for record in dataset.records]
    assert features.splits.tolist() == [record.split for record in dataset.records]
    assert features.pids.tolist() == [record.pid for record in dataset.records]
    np.testing.assert_allclose(features.thresholds, [0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1], rtol=1e-6)
    assert features.attributes["flip"] is flip
    model = FeatureNetwork.load(checkpoint, config(), RankInfo())._model
    image = torch.from_numpy(read_resized(dataset.path_of(dataset.records[5]), HEIGHT, WIDTH))[None]
    with torch.no_grad():
        views = [model(normalise(view)) for view in ((image, image.flip(2)) if flip else (image,))]
    np.testing.assert_allclose(features.parts[5], sum(v.parts() for v in views)[0] / len(views), atol=1e-4)
    np.testing.assert_allclose(
        features.global_feature[5], sum(v.matched_global for v in views)[0] / len(views), atol=1e-4
    )
    np.testing.assert_allclose(features.visibility[5], sum(v.visibility for v in views)[0] / len(views), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("DefaultCPUAllocator: can't allocate memory: you tried", DeviceError), ("shapes do not match", RuntimeError)],
)
def test_the_processors_memory_may_be_too_small(
    checkpoint: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, text: str, expected: type[Exception]
) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError(text)

    network = FeatureNetwork.load(checkpoint, config(), RankInfo())
    monkeypatch.setattr(network_module, "embed", failing)
    with pytest.raises(expected) as caught:
        next(network.batches([dataset.path_of(record) for record in dataset.records]))
    assert (type(caught.value) is DeviceError) == ("where: extract.batch_size" in str(caught.value))


def test_a_network_that_does_not_fit_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network_module, "embed", failing)
    with pytest.raises(DeviceError, match="the network does not fit into the memory of cpu"):
        FeatureNetwork.load(checkpoint, config(), RankInfo())


def test_too_large_a_batch_is_no_hindrance_to_a_smaller_one(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error advises works: a file without rows binds nobody to its size."""
    see, most = network_module.embed, [2]

    def small(model: Any, images: torch.Tensor, **options: Any) -> Any:
        if len(images) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return see(model, images, **options)

    monkeypatch.setattr(network_module, "embed", small)
    out = tmp_path / "f.h5"
    with pytest.raises(DeviceError, match="4 images a batch do not fit") as caught:
        run(out, dataset, checkpoint, batch_size=4)
    assert caught.value.where == "extract.batch_size"
    assert run(out, dataset, checkpoint, batch_size=2).done == COUNT


def test_a_file_of_before_epochs_were_named_is_complete(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    out = tmp_path / "f.h5"
    run(out, dataset, checkpoint)
    with h5py.File(out, "r+") as file:
        attributes = json.loads(file.attrs["attributes"])
        file.attrs["attributes"] = json.dumps({k: v for k, v in attributes.items() if k not in ("epochs", "seed")})
    assert run(out, dataset, checkpoint).resumed == COUNT


def test_a_single_image_that_does_not_fit_is_told_where_it_would(
    checkpoint: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = FeatureNetwork.load(checkpoint, config(batch_size=1), RankInfo())
    monkeypatch.setattr(network_module, "embed", exhausted)
    with pytest.raises(DeviceError, match="a single image does not fit") as caught:
        next(network.batches([dataset.path_of(dataset.records[0])]))
    assert caught.value.hint == "use --device cpu"


class _Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_once_written(rows: int) -> Iterator[None]:
    """The extraction within dies as soon as so many rows are in its file."""

    class Dying(extract_module.FeatureWriter):
        def append(self, *arrays: object) -> None:
            super().append(*arrays)  # type: ignore[arg-type]
            if self.done >= rows:
                raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "FeatureWriter", Dying)
        with pytest.raises(_Killed):
            yield


def test_a_batch_that_does_not_fit_any_more_is_told_how_to_begin_anew(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    with killed_once_written(BATCH):
        run(out, dataset, checkpoint)
    see = network_module.embed

    def small(model: Any, images: torch.Tensor, **options: Any) -> Any:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return see(model, images, **options)

    monkeypatch.setattr(network_module, "embed", small)
    with pytest.raises(DeviceError, match="images a batch do not fit") as caught:
        run(out, dataset, checkpoint, batch_size=1)
    partial = tmp_path / "f.h5.partial"
    assert caught.value.hint == f"delete {partial} to begin anew: as it is, it goes on in batches of {BATCH}"
    partial.unlink()
    assert run(out, dataset, checkpoint, batch_size=1).done == COUNT


@pytest.mark.parametrize("after", [0, 1, 2])
def test_killed_and_resumed_gives_the_same_bytes(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, after: int
) -> None:
    run(tmp_path / "straight.h5", dataset, checkpoint)
    written = 0

    class Dying(extract_module.FeatureWriter):
        def append(self, *arrays: object) -> None:
            nonlocal written
            if written == after:
                raise _Killed
            written += 1
            super().append(*arrays)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_module, "FeatureWriter", Dying)
        with pytest.raises(_Killed):
            run(tmp_path / "killed.h5", dataset, checkpoint)
    assert not (tmp_path / "killed.h5").exists()
    # The notes and the batch size are those that the work was begun with; a file without rows binds nobody.
    moved = dataclasses.replace(dataset, notes=("it lies elsewhere",))
    now, size = (moved, 3) if after else (dataset, BATCH)
    report = run(tmp_path / "killed.h5", now, checkpoint, batch_size=size)
    assert report.resumed == after * BATCH
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "straight.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("broken", [[0], [5], [4, 5, 6, 7], [1, 10]])
def test_unreadable_images_have_no_row_and_are_listed(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, broken: list[int]
) -> None:
    run(tmp_path / "good.h5", dataset, checkpoint)
    for i in broken:
        dataset.path_of(dataset.records[i]).write_bytes(b"no image")
    report = run(tmp_path / "some.h5", dataset, checkpoint)
    assert [each.path for each in report.failed] == [dataset.records[i].path for i in broken]
    assert report.done == COUNT - len(broken)
    some, good = (FeatureFile.open(tmp_path / name).load() for name in ("some.h5", "good.h5"))
    kept = [i for i in range(COUNT) if i not in broken]
    assert some.names.tolist() == good.names[kept].tolist()
    np.testing.assert_allclose(some.parts, good.parts[kept], atol=1e-4)
    assert [name for _, name, _ in some.attributes["rejected"]] == [dataset.records[i].path for i in broken]


@pytest.mark.parametrize("finished", [False, True])
def test_images_that_can_be_read_again_get_their_rows(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, finished: bool
) -> None:
    run(tmp_path / "good.h5", dataset, checkpoint)
    away = [dataset.path_of(dataset.records[row]) for row in (1, 6)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    out = tmp_path / "some.h5"
    if finished:
        assert run(out, dataset, checkpoint).done == COUNT - 2
    else:
        with killed_once_written(COUNT - 5):
            run(out, dataset, checkpoint)
    for path in away:
        path.with_suffix(".away").rename(path)
    report = run(out, dataset, checkpoint)
    assert (report.done, report.resumed) == (COUNT, 0)
    assert out.read_bytes() == (tmp_path / "good.h5").read_bytes()


def test_an_unfinished_file_of_other_work_is_left_alone(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    broken = dataset.path_of(dataset.records[0])
    global_feature = broken.read_bytes()
    broken.write_bytes(b"no image")
    with killed_once_written(COUNT - 4):
        run(tmp_path / "f.h5", dataset, checkpoint)
    broken.write_bytes(global_feature)
    partial = tmp_path / "f.h5.partial"
    before = partial.read_bytes()
    for records in (dataset.records[:3], dataset.records[1:]):
        with pytest.raises(FormatError):
            extract(tmp_path / "f.h5", dataset=dataset, records=records, checkpoint=checkpoint, config=config())
        assert partial.read_bytes() == before
    # A part of a run of several processes, likewise: at the end they are cleared away.
    part = partial.rename(tmp_path / "f.h5.part1-of-2.partial")
    with pytest.raises(FormatError, match="unfinished, begun with flip = False, not True"):
        run(tmp_path / "f.h5", dataset, checkpoint, flip=True)
    assert part.read_bytes() == before


def test_no_other_file_is_replaced(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    out = tmp_path / "f.h5"
    run(out, dataset, checkpoint)
    before = out.read_bytes()
    other = dataclasses.replace(dataset.records[0], pid=99)
    for records, changed, found in (
        (dataset.records, {"flip": True}, "made with flip = False, not True"),
        (dataset.records[:-1], {}, "made of other images"),
        ((other, *dataset.records[1:]), {}, "made of other images, identities"),
    ):
        with pytest.raises(FormatError, match=found):
            extract(out, dataset=dataset, records=records, checkpoint=checkpoint, config=config(**changed))
    assert out.read_bytes() == before
    for name in ("model.safetensors", "images"):
        with pytest.raises(FormatError, match=r"this is a folder|there is a file already, that cannot be gone on with"):
            run(tmp_path / name, dataset, checkpoint)
    with locked(tmp_path / "g.h5.lock"), pytest.raises(LockedError, match="making this features file"):
        run(tmp_path / "g.h5", dataset, checkpoint)
    assert not (tmp_path / "g.h5").exists()


def test_nothing_readable_and_nothing_at_all(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        extract(tmp_path / "f.h5", dataset=dataset, records=(), checkpoint=checkpoint, config=config())
    for record in dataset.records:
        dataset.path_of(record).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 11 images"):
        run(tmp_path / "f.h5", dataset, checkpoint)
    assert not list(tmp_path.glob("f.h5*"))


def test_parts_of_a_killed_run_of_several_processes_are_cleared_away(
    tmp_path: Path, dataset: Dataset, checkpoint: Path
) -> None:
    left = tmp_path / "f.h5.part1-of-2.partial"
    left.write_bytes(b"left")
    run(tmp_path / "f.h5", dataset, checkpoint)
    assert sorted(path.name for path in tmp_path.glob("f.h5*")) == ["f.h5"]


def pretend_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let this process act as each rank of two in turn, without collectives."""
    monkeypatch.setattr(extract_module, "barrier", lambda: None)

    def as_rank(rank: int) -> None:
        ranks = RankInfo(rank, 2)
        monkeypatch.setattr(extract_module, "rank_info", lambda: ranks)
        monkeypatch.setattr(extract_module, "process_group", lambda: contextlib.nullcontext(ranks))

    return as_rank


def test_a_process_without_one_readable_image_leaves_the_others_theirs(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in dataset.records[:8]:
        dataset.path_of(record).write_bytes(b"")
    # Two processes, one after the other; here they would wait for each other.
    as_rank = pretend_ranks(monkeypatch)
    for rank in (1, 0):
        as_rank(rank)
        report = run(tmp_path / "f.h5", dataset, checkpoint)
    assert report.done == 3
    assert [each.path for each in report.failed] == [record.path for record in dataset.records[:8]]
    assert FeatureFile.open(tmp_path / "f.h5").names().tolist() == [record.path for record in dataset.records[8:]]
    assert sorted(path.name for path in tmp_path.glob("f.h5*")) == ["f.h5"]


def test_several_processes_without_one_readable_image_leave_nothing_behind(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {record: dataset.path_of(record).read_bytes() for record in dataset.records}
    for record in dataset.records:
        dataset.path_of(record).write_bytes(b"")
    as_rank = pretend_ranks(monkeypatch)
    as_rank(1)
    run(tmp_path / "f.h5", dataset, checkpoint)
    as_rank(0)
    with pytest.raises(DataError, match="none of the 11 images"):
        run(tmp_path / "f.h5", dataset, checkpoint)
    assert not list(tmp_path.glob("f.h5*"))
    # Once the images are there, the same command does its work.
    for record, content in contents.items():
        dataset.path_of(record).write_bytes(content)
    for rank in (1, 0):
        as_rank(rank)
        report = run(tmp_path / "f.h5", dataset, checkpoint)
    assert report.done == COUNT


def test_an_unfinished_file_of_another_checkpoint_is_refused(
    tmp_path: Path, dataset: Dataset, checkpoint: Path
) -> None:
    run(tmp_path / "f.h5", dataset, checkpoint)
    (tmp_path / "f.h5").rename(tmp_path / "f.h5.partial")
    with pytest.raises(FormatError, match="unfinished, begun with checkpoint_sha256"):
        run(tmp_path / "f.h5", dataset, make_checkpoint(tmp_path / "other.safetensors", part_dim=16))


def test_the_baseline_has_no_parts(tmp_path: Path, dataset: Dataset) -> None:
    checkpoint = make_checkpoint(tmp_path / "b.safetensors", kind="baseline", global_dim=12)
    run(tmp_path / "f.h5", dataset, checkpoint)
    features = FeatureFile.open(tmp_path / "f.h5").load()
    assert features.parts.shape == (COUNT, 7, 0)
    assert features.global_feature.shape == (COUNT, 12)
    assert not features.visible.any()


def test_embed_equals_extraction(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    run(tmp_path / "f.h5", dataset, checkpoint)
    paths = [dataset.path_of(record) for record in dataset.records]
    features = embed(paths, checkpoint, config())
    np.testing.assert_array_equal(features.parts, FeatureFile.open(tmp_path / "f.h5").load().parts)
    paths[3].write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 11 images cannot be used"):
        embed(paths, checkpoint, config())


def test_a_network_that_diverged_is_told(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(checkpoint)
    # All normalisation: one strip's head alone may belong to a strip that this network finds empty, which gives zeros.
    for name, value in state.items():
        if name.endswith(".weight") and value.ndim == 1:
            value.fill_(torch.nan)
    save_file(state, checkpoint, metadata=metadata)
    with pytest.raises(WeightsError, match="not finite"):
        run(tmp_path / "f.h5", dataset, checkpoint)


def test_a_pickle_in_place_of_a_checkpoint_is_not_opened(tmp_path: Path, dataset: Dataset) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (sys.exit, (3,))

    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError):
        run(tmp_path / "f.h5", dataset, tmp_path / "bomb.safetensors")

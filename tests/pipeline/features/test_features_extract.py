"""Extraction: right rows, failed rows with their reasons, and the same bytes however it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ExtractConfig
from pipeline.datasets.images import fitted, read_image, read_resized, write_image
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import ArtifactError, DataError, DeviceError, FormatError, LockedError, WeightsError
from pipeline.features import embedder as embedder_module
from pipeline.features import extract as extract_module
from pipeline.features.embedder import Embedder, embed
from pipeline.features.extract import ExtractReport, embed_records, extract, extract_file
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.formats.rows import RowWriter
from pipeline.model.normalise import normalise
from pipeline.runtime.process_group import RankInfo
from pipeline.store.output import exclusive
from tests.helpers.checkpoints import HEIGHT, WIDTH, make_checkpoint

COUNT, BATCH = 11, 4


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


def run(out: Path, dataset: Dataset, checkpoint: Path, **changes: object) -> ExtractReport:
    return extract_file(out, dataset=dataset, records=dataset.records, checkpoint=checkpoint, config=config(**changes))


def break_images(dataset: Dataset, rows: list[int]) -> None:
    for row in rows:
        dataset.path_of(dataset.records[row]).write_bytes(b"no image")


class _Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_after(batches: int) -> Iterator[None]:
    """The extraction within dies once so many batches are written."""
    write, written = RowWriter.write, 0

    def dying(*arguments: Any) -> None:
        nonlocal written
        if written == batches:
            raise _Killed
        written += 1
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowWriter, "write", dying)
        with pytest.raises(_Killed):
            yield


@pytest.mark.parametrize("flip", [False, True])
def test_extract__rows_equal_the_network(tmp_path: Path, dataset: Dataset, checkpoint: Path, flip: bool) -> None:
    report = run(tmp_path / "f.h5", dataset, checkpoint, flip=flip)
    assert (report.total, report.done, report.failed, report.resumed) == (COUNT, COUNT, (), 0)
    features = Features.load(tmp_path / "f.h5")
    assert features.names.tolist() == [record.path for record in dataset.records]
    assert features.splits.tolist() == [record.split for record in dataset.records]
    assert features.pids.tolist() == [record.pid for record in dataset.records]
    assert features.camids.tolist() == [record.camid for record in dataset.records]
    np.testing.assert_allclose(features.thresholds, [0.1, 0.2, 0.3, 0.05, 0.1, 0.1, 0.1], rtol=1e-6)
    record = features.provenance.values
    assert (record["flip"], record["data"], record["backbone"]) == (flip, "folder:few", "mobilenet_v2")
    model = Embedder.load(checkpoint, config())._model
    image = torch.from_numpy(read_resized(dataset.path_of(dataset.records[5]), HEIGHT, WIDTH))[None]
    with torch.no_grad():
        views = [model(normalise(view)) for view in ((image, image.flip(2)) if flip else (image,))]
    wanted = {"parts": "matched", "global_feature": "matched_global", "visibility": "visibility"}
    for name, output in wanted.items():
        mean = sum(getattr(view, output) for view in views)[0] / len(views)
        np.testing.assert_allclose(getattr(features, name)[5], mean, atol=1e-4)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_extract__resumed_equals_undisturbed_to_the_byte(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, after: int
) -> None:
    run(tmp_path / "straight.h5", dataset, checkpoint)
    out = tmp_path / "killed.h5"
    with killed_after(after):
        run(out, dataset, checkpoint)
    assert not out.exists()
    assert run(out, dataset, checkpoint).resumed == after * BATCH
    assert out.read_bytes() == (tmp_path / "straight.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    assert run(out, dataset, checkpoint).resumed == COUNT


@pytest.mark.parametrize("broken", [[0], [5], [4, 5, 6, 7], [1, 10]])
def test_extract__unreadable_images_are_failed_rows(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, broken: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "good.h5", dataset, checkpoint)
    break_images(dataset, broken)
    with caplog.at_level(logging.WARNING, "sgsfa.features"):
        report = run(tmp_path / "some.h5", dataset, checkpoint)
    assert [each.path for each in report.failed] == [dataset.records[i].path for i in broken]
    assert report.done == COUNT - len(broken)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert f"{len(broken)} of {COUNT}" in warning
    assert dataset.records[broken[0]].path in warning
    file = FeatureFile.open(tmp_path / "some.h5")
    assert (len(file), file.failed) == (COUNT, report.failed)
    kept = np.setdiff1d(np.arange(COUNT), broken)
    some, good = file.load(), Features.load(tmp_path / "good.h5")
    assert file.rows.tolist() == kept.tolist()
    assert some.names.tolist() == good.names[kept].tolist()
    # Unreadable images do not change the batches of the others.
    np.testing.assert_array_equal(some.parts, good.parts[kept])


@pytest.mark.parametrize("finished", [False, True])
def test_extract__images_readable_again_get_features(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, finished: bool
) -> None:
    run(tmp_path / "good.h5", dataset, checkpoint)
    away = [dataset.path_of(dataset.records[row]) for row in (1, 6)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    out = tmp_path / "some.h5"
    if finished:
        assert run(out, dataset, checkpoint).done == COUNT - 2
        assert run(out, dataset, checkpoint).resumed == COUNT
    else:
        with killed_after(2):
            run(out, dataset, checkpoint)
    for path in away:
        path.with_suffix(".away").rename(path)
    report = run(out, dataset, checkpoint)
    assert report.done == COUNT
    assert out.read_bytes() == (tmp_path / "good.h5").read_bytes()


def test_extract__resumes_with_a_smaller_batch_after_out_of_memory(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_batch, calls = embedder_module.embed_batch, []

    def small(model: Any, images: torch.Tensor, **options: Any) -> Any:
        calls.append(len(images))
        # The first call is the probe of one image.
        if len(images) > 2 and len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed_batch(model, images, **options)

    monkeypatch.setattr(embedder_module, "embed_batch", small)
    with pytest.raises(DeviceError) as caught:
        run(tmp_path / "f.h5", dataset, checkpoint)
    assert "extract.batch_size" in str(caught.value.hint)
    report = run(tmp_path / "f.h5", dataset, checkpoint, batch_size=2)
    assert (report.done, report.resumed) == (COUNT, BATCH)


def test_embedder__other_errors_of_the_network_pass_through(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(embedder_module, "embed_batch", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        Embedder.load(checkpoint, config())


def test_extract__an_existing_file_of_other_work_is_not_replaced(
    tmp_path: Path, dataset: Dataset, checkpoint: Path
) -> None:
    out = tmp_path / "f.h5"
    run(out, dataset, checkpoint)
    before = out.read_bytes()
    other = dataclasses.replace(dataset.records[0], pid=99)
    another = make_checkpoint(tmp_path / "other.safetensors", part_dim=16)
    for records, network, changed, found in (
        (dataset.records, checkpoint, {"flip": True}, "flip"),
        (dataset.records, another, {}, "checkpoint_sha256"),
        (dataset.records[:-1], checkpoint, {}, "0 missing, 1 unexpected"),
        ((other, *dataset.records[1:]), checkpoint, {}, "other images"),
    ):
        options = {"dataset": dataset, "records": records, "checkpoint": network, "config": config(**changed)}
        with pytest.raises(FormatError, match=found):
            extract_file(out, **options)
    assert out.read_bytes() == before
    with pytest.raises(ArtifactError, match="folder"):
        run(tmp_path / "images", dataset, checkpoint)
    lock = tmp_path / "g.h5.lock"
    with exclusive(lock, tmp_path / "g.h5", "features file"), pytest.raises(LockedError):
        run(tmp_path / "g.h5", dataset, checkpoint)


def test_extract__without_a_readable_image(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    out = tmp_path / "f.h5"
    with pytest.raises(DataError, match="no images"):
        extract(out, dataset=dataset, records=(), checkpoint=checkpoint, config=config())
    contents = [dataset.path_of(record).read_bytes() for record in dataset.records]
    break_images(dataset, list(range(COUNT)))
    with pytest.raises(DataError, match=f"none of the {COUNT} images"):
        run(out, dataset, checkpoint)
    assert not out.exists()
    with pytest.raises(DataError, match=f"none of the {COUNT} images"):
        embed_records(dataset, dataset.records, checkpoint, config())
    for record, content in zip(dataset.records, contents, strict=True):
        dataset.path_of(record).write_bytes(content)
    # A file without features does not stand in the way of other settings.
    assert run(out, dataset, checkpoint, flip=True).done == COUNT


def test_extract__shares_of_ranks_make_the_file_of_one_process(
    tmp_path: Path, dataset: Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one.h5", dataset, checkpoint)
    starts = list(range(0, COUNT, BATCH))
    paths = [dataset.path_of(record) for record in dataset.records]
    sent: list[list[Any]] = []
    for rank in (1, 0):
        work = extract_module._Work(Embedder.load(checkpoint, config()), paths, BATCH, RankInfo(rank, 2, rank, 2))
        if rank == 1:
            monkeypatch.setattr(extract_module, "gather", lambda batch: sent.append([batch]) or [])
            assert list(work._embedded(starts)) == []
        else:
            monkeypatch.setattr(extract_module, "gather", lambda batch: [batch, *sent.pop(0)])
            found = dict(work._embedded(starts))
    assert list(found) == starts
    parts = np.concatenate([batch.arrays["parts"] for batch in found.values()])
    np.testing.assert_array_equal(parts, Features.load(tmp_path / "one.h5").parts)


def test_extract__baseline_has_no_parts(tmp_path: Path, dataset: Dataset) -> None:
    checkpoint = make_checkpoint(tmp_path / "b.safetensors", kind="baseline", global_dim=12)
    run(tmp_path / "f.h5", dataset, checkpoint)
    features = Features.load(tmp_path / "f.h5")
    assert features.parts.shape == (COUNT, 7, 0)
    assert features.global_feature.shape == (COUNT, 12)
    assert not features.visible.any()


def test_extract__padded_images_reach_the_network_with_their_proportions(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    write_image(tmp_path / "cut.png", pixels)
    network = make_checkpoint(tmp_path / "model.safetensors", fit="pad")
    frame, area = fitted(pixels, HEIGHT, WIDTH, "pad")
    assert area == (0, 0, round(0.6 * HEIGHT) / HEIGHT, 1)
    embedder = Embedder.load(network, config())
    (batch,) = embedder.batches([tmp_path / "cut.png"])
    in_memory = embedder.embed([pixels])
    wanted = embedder.forward(frame[None])
    np.testing.assert_array_equal(batch.arrays["global_feature"], wanted["global_feature"])
    np.testing.assert_allclose(in_memory.global_feature, wanted["global_feature"], rtol=1e-4)
    stretched = Embedder.load(make_checkpoint(tmp_path / "other.safetensors"), config()).embed([pixels])
    assert not np.allclose(stretched.global_feature, in_memory.global_feature, rtol=1e-2, atol=0)


def test_part_masks__cover_the_image_without_its_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "cut.png", np.zeros((40, 40, 3), np.uint8))
    write_image(tmp_path / "whole.png", np.zeros((80, 40, 3), np.uint8))
    rows = torch.arange(16, dtype=torch.uint8).view(1, 1, 16, 1) * 10
    predicted = rows.expand(2, 4, 16, 8).contiguous()
    monkeypatch.setattr(embedder_module, "predict_masks", lambda network, images: predicted)
    embedder = Embedder.load(make_checkpoint(tmp_path / "model.safetensors", fit="pad"), config())
    cut, whole = embedder.part_masks([tmp_path / "cut.png", tmp_path / "whole.png"])
    np.testing.assert_array_equal(whole, predicted[1].numpy())
    # Half of the frame's rows show the image: row i of the mask is row 0.5 (i + 0.5) - 0.5 of the frame, from 0 to 7.
    np.testing.assert_allclose(cut[0, :, 0], 10 * (0.5 * (np.arange(16) + 0.5) - 0.5).clip(0, 7), atol=0.6)


def test_extract__npz_holds_the_same_features(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    run(tmp_path / "f.h5", dataset, checkpoint)
    options = {"dataset": dataset, "records": dataset.records, "checkpoint": checkpoint, "config": config()}
    extract_file(tmp_path / "f.npz", **options, as_npz=True)
    one, other = Features.load(tmp_path / "f.h5"), Features.load(tmp_path / "f.npz")
    for name, array in one.to_numpy().items():
        np.testing.assert_array_equal(array, other.to_numpy()[name])
    assert one.provenance == other.provenance
    assert sorted(path.name for path in tmp_path.glob("f.*")) == ["f.h5", "f.npz"]


def test_embed__paths_images_and_arrays_give_the_same_features(
    tmp_path: Path, dataset: Dataset, checkpoint: Path
) -> None:
    run(tmp_path / "f.h5", dataset, checkpoint)
    stored = Features.load(tmp_path / "f.h5")
    paths = [dataset.path_of(record) for record in dataset.records]
    mixed: list[Any] = [str(paths[0]), Image.open(paths[1]), read_image(paths[2]), *paths[3:]]
    features = embed(mixed, checkpoint, config())
    np.testing.assert_array_equal(features.parts, stored.parts)
    assert features.names.tolist() == [str(paths[0]), "image-2", "image-3", *map(str, paths[3:])]
    assert (features.splits == "all").all()
    in_memory = embed_records(dataset, dataset.records, checkpoint, config())
    np.testing.assert_array_equal(in_memory.parts, stored.parts)
    assert in_memory.provenance == stored.provenance


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ([], "no images"),
        ([np.zeros((8, 8, 3), np.float32)], "float32"),
        ([np.zeros((8, 8), np.uint8)], r"\(8, 8\)"),
        ([np.zeros((8, 8, 4), np.uint8)], r"\(8, 8, 4\)"),
        ("photo.jpg", "a single image"),
        (np.zeros((8, 8, 3), np.uint8), "a single image"),
        (["nowhere.jpg", "neither.jpg"], r"2 of 2.*nowhere\.jpg"),
    ],
)
def test_embed__misuse_is_refused(checkpoint: Path, images: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        embed(images, checkpoint, config())


def test_extract__diverged_network(tmp_path: Path, dataset: Dataset, checkpoint: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(checkpoint)
    # All normalisation: the head of an empty strip alone would give zeros.
    for name, value in state.items():
        if name.endswith(".weight") and value.ndim == 1:
            value.fill_(torch.nan)
    save_file(state, checkpoint, metadata=metadata)
    with pytest.raises(WeightsError, match="not finite"):
        run(tmp_path / "f.h5", dataset, checkpoint)


def test_extract__a_pickle_in_place_of_a_checkpoint_is_not_opened(tmp_path: Path, dataset: Dataset) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    pickled = pickle.dumps(Trap())
    pickle.loads(pickled)
    (tmp_path / "sprung").unlink()
    (tmp_path / "trap.safetensors").write_bytes(pickled)
    with pytest.raises(WeightsError):
        run(tmp_path / "f.h5", dataset, tmp_path / "trap.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("native", "amp", "noted"), [(True, "off", True), (True, "bf16", False), (False, "off", False)]
)
def test_extract__notes_native_bfloat16(
    tmp_path: Path,
    dataset: Dataset,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    native: bool,
    amp: str,
    noted: bool,
) -> None:
    monkeypatch.setattr(extract_module, "has_native_bfloat16", lambda: native)
    with caplog.at_level(logging.INFO, "sgsfa.features"):
        run(tmp_path / "features.h5", dataset, checkpoint, amp=amp)
    assert any("extract.amp=bf16" in message for message in caplog.messages) is noted

"""Ten tasks of a user, each in a few lines and with one import; misuse; what is and is not printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sgsfa
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.features import clustered
from tests.helpers.tiny_models import write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    write_people(root, 12)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture(scope="module")
def table(people: Path) -> list[dict[str, object]]:
    names = sorted(path.relative_to(people).as_posix() for path in people.rglob("*.jpg"))
    return [
        {"path": name, "pid": 1 + i % 3, "camid": 1 + i % 2, "split": "query" if i < 4 else "gallery"}
        for i, name in enumerate(names)
    ]


# Ten tasks


def test_embed__a_numpy_batch(checkpoint: Path) -> None:
    model = sgsfa.load_model(checkpoint)
    features = model.embed(np.random.default_rng(0).integers(0, 256, (5, 90, 40, 3), dtype=np.uint8))
    assert len(features) == 5


def test_embed__paths_and_pillow_images_agree(checkpoint: Path, people: Path) -> None:
    path = next(people.rglob("*.jpg"))
    features = sgsfa.load_model(checkpoint).embed([path, str(path), Image.open(path), np.asarray(Image.open(path))])
    assert np.abs(features.parts - features.parts[:1]).max() < 1e-6


def test_embed__opencv_arrays_need_their_channels(people: Path) -> None:
    model, path = sgsfa.load_model(device="cpu"), next(people.rglob("*.jpg"))
    (rgb,) = model.embed([path]).parts
    array = np.asarray(Image.open(path))[..., ::-1]
    assert np.abs(model.embed([array, path], channels="bgr").parts - rgb).max() < 1e-3
    assert np.abs(model.embed([array]).parts - rgb).max() > 0.1
    with pytest.raises(sgsfa.SgsfaError, match="'gbr'"):
        model.embed([array], channels="gbr")  # type: ignore[arg-type]


def test_visibility__of_one_image(checkpoint: Path, people: Path) -> None:
    features = sgsfa.load_model(checkpoint).embed([next(people.rglob("*.jpg"))])
    assert features.visibility.shape == (1, 7)
    assert ((features.visibility[0] > features.thresholds) == features.visible[0]).all()


def test_open_dataset__a_table(people: Path, table: list[dict[str, object]]) -> None:
    dataset = sgsfa.open_dataset(table, root=people)
    assert [len(dataset.split(name)) for name in ("query", "gallery")] == [4, 8]


def test_open_dataset__arrays(tmp_path: Path, checkpoint: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), dtype=np.uint8)
    rows = [
        {"image": image, "pid": i % 2, "camid": i, "split": ("query", "gallery")[i > 1]}
        for i, image in enumerate(images)
    ]
    dataset = sgsfa.open_dataset(rows, root=tmp_path)
    report = sgsfa.extract(tmp_path / "features.h5", dataset, checkpoint)
    assert (report.done, report.failed) == (4, ())


def test_evaluate__own_features() -> None:
    features = clustered(60, 1)
    splits = np.where(np.arange(60) < 20, "query", "gallery")
    ours = sgsfa.Features.from_arrays(
        features.parts,
        features.global_feature,
        features.visibility,
        pids=np.arange(60) % 12,
        camids=np.arange(60),
        splits=splits,
    )
    result = sgsfa.evaluate(ours, rule="mean")
    assert result.result.metrics.num_queries == 20
    assert "mAP" in str(result)


def test_distances__of_two_sets() -> None:
    features = clustered(10, 1)
    matrix = sgsfa.distances(features, features)
    assert matrix.shape == (10, 10)
    assert np.abs(np.diag(matrix)).max() < 1e-3


def test_search__a_folder(people: Path, checkpoint: Path) -> None:
    path = sorted(people.rglob("*.jpg"))[3]
    found = sgsfa.search(path, people, k=3, checkpoint=checkpoint)
    assert found.queries[0].nearest[0].name == path.relative_to(people).as_posix()
    assert found.queries[0].nearest[0].distance == pytest.approx(0, abs=1e-4)


def test_search__an_npz_gallery_decides_the_flip(people: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = min(people.rglob("*.jpg"))
    sgsfa.extract(tmp_path / "gallery.npz", people, checkpoint, flip=True)
    found = sgsfa.search(path, tmp_path / "gallery.npz", k=1, checkpoint=checkpoint)
    assert found.queries[0].nearest[0].distance == pytest.approx(0, abs=1e-4)


def test_compare__two_images(people: Path, checkpoint: Path) -> None:
    first, second = sorted(people.rglob("*.jpg"))[:2]
    pair = sgsfa.compare(first, second, checkpoint=checkpoint)
    assert sum(part.weight * (part.distance or 0) for part in pair.parts) == pytest.approx(pair.distance, abs=1e-5)
    assert "<td>head</td>" in pair._repr_html_()


def test_features__to_a_file_and_back(tmp_path: Path) -> None:
    features = clustered(10, 1)
    for name in ("features.h5", "features.npz"):
        features.save(tmp_path / name)
        assert np.array_equal(sgsfa.Features.load(tmp_path / name).parts, features.parts)


def test_report__of_a_features_file(
    tmp_path: Path, people: Path, table: list[dict[str, object]], checkpoint: Path
) -> None:
    dataset = sgsfa.open_dataset(table, root=people)
    sgsfa.extract(tmp_path / "features.h5", dataset, checkpoint)
    page = sgsfa.report(tmp_path / "features.h5", dataset, out=tmp_path / "report.html", checkpoint=checkpoint)
    assert len(page.tests[0].queries) == 4
    assert page.masks
    assert (tmp_path / "report.html").stat().st_size > 200_000


def test_load_config__all_wrong_keys_at_once() -> None:
    with pytest.raises(sgsfa.SgsfaError) as caught:
        sgsfa.load_config(settings={"train.epohcs": 3, "model.hight": 128})
    assert "train.epochs" in str(caught.value)
    assert "model.height" in str(caught.value)


# Misuse


def test_embed__refuses_what_is_no_image(checkpoint: Path, tmp_path: Path) -> None:
    model = sgsfa.load_model(checkpoint)
    for wrong, named in (
        (np.zeros((2, 64, 32, 3), np.float32), "float32"),
        (np.zeros((2, 64, 32), np.uint8), "single image"),
        ([], "no images"),
        ([tmp_path / "absent.jpg"], "absent.jpg"),
    ):
        with pytest.raises(sgsfa.SgsfaError) as caught:
            model.embed(wrong)
        assert named in str(caught.value)


def test_embed__counts_unreadable_images_of_all_batches(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    good = next(people.rglob("*.jpg"))
    images = [tmp_path / "first.jpg", good, good, tmp_path / "last.jpg"]
    with pytest.raises(sgsfa.SgsfaError, match="2 of 4 images") as caught:
        sgsfa.load_model(checkpoint, batch_size=2).embed(images)
    assert "last.jpg" in str(caught.value)


def test_load_model__of_another_program(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(sgsfa.SgsfaError, match=r"other\.safetensors"):
        sgsfa.load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("row", "named"),
    [({"pid": 1}, "row 0"), ({"path": "a.jpg", "pid": "x"}, "'x'"), ({"path": "a.jpg", "split": "test"}, "'test'")],
)
def test_open_dataset__names_the_bad_row(row: dict[str, object], named: str) -> None:
    with pytest.raises(sgsfa.SgsfaError) as caught:
        sgsfa.open_dataset([row])
    assert named in str(caught.value)


def test_settings__are_checked() -> None:
    with pytest.raises(sgsfa.SgsfaError, match="rule"):
        sgsfa.distances(clustered(2, 1), clustered(2, 1), rule="shrnuk")
    with pytest.raises(AttributeError, match="embd"):
        sgsfa.embd  # noqa: B018


# Surroundings


def test_import__is_light_and_complete() -> None:
    loaded = "print('torch' in sys.modules, 'numpy' in sys.modules)"
    code = f"import sgsfa, sys; {loaded}; [getattr(sgsfa, name) for name in sgsfa.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_library__prints_nothing_and_is_audible(people: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path in people.rglob("*.jpg"):
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    code = f"import sgsfa; sgsfa.extract({str(tmp_path / 'f.h5')!r}, {str(tmp_path / 'photos')!r}, {str(checkpoint)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "sgsfa: " in done.stderr
    assert "broken.jpg" in done.stderr or "1 " in done.stderr


def test_results__are_plain_json(people: Path, checkpoint: Path) -> None:
    first, second = sorted(people.rglob("*.jpg"))[:2]
    assert json.loads(json.dumps(sgsfa.compare(first, second, checkpoint=checkpoint).to_json()))["distance"] >= 0

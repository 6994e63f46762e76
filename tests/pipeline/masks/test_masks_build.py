from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import time
import unicodedata
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.config import MasksConfig
from pipeline.datasets.images import fitted, read_image, read_resized
from pipeline.errors import ArtifactError, ConfigError, DataError, DeviceError, FormatError, LockedError
from pipeline.formats import rows
from pipeline.formats.masks import FAILED, OK, MaskFile
from pipeline.masks import build, source
from pipeline.masks.build import MaskReport, build_mask_file, build_masks
from pipeline.masks.compute import Recipe
from pipeline.masks.occupancy import area_average, quantise
from pipeline.parsing.files import sidecar_path
from pipeline.parsing.labels import group_soft, load_grouping, load_label_set
from pipeline.parsing.parser import ParserInfo, load_parser, parse_flipped
from pipeline.store.output import exclusive
from tests.helpers import mask_builder
from tests.helpers.tiny_models import write_onnx, write_people

KEYS = ("parts", "body", "quality", "status")
People = tuple[Path, list[str]]


def run(out: Path, people: People, parser: str, **options: Any) -> MaskReport:
    root, names = people
    return build_mask_file(out, root=root, names=names, config=MasksConfig(parser=parser, device="cpu", **options))


def partial_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def value(out: Path, key: str) -> object:
    return MaskFile.open(out).provenance.values.get(key)


def same_arrays(first: Path, second: Path) -> bool:
    one, other = MaskFile.open(first), MaskFile.open(second)
    return one.names == other.names and all(np.array_equal(getattr(one, key), getattr(other, key)) for key in KEYS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, people: People, tiny_parser: str) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "masks.h5"
    run(out, people, tiny_parser, batch_size=3)
    return out


# What comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flip", "hard"), [(False, False), (True, False), (False, True), (True, True)])
def test_masks_equal_those_made_by_hand(
    tmp_path: Path, people: People, tiny_parser: str, flip: bool, hard: bool
) -> None:
    report = run(tmp_path / "masks.h5", people, tiny_parser, flip=flip, hard=hard, batch_size=7)
    root, names = people
    assert (report.total, report.done, report.failed, report.resumed) == (40, 40, (), 0)
    assert report.images_per_second > 0
    file = MaskFile.open(tmp_path / "masks.h5")
    values = file.provenance.values
    assert (values["flip"], values["hard"], values["batch_size"], values["parser"]) == (flip, hard, 7, "onnx")
    masks, parser, lip = file, load_parser(tiny_parser, device="cpu"), load_label_set("lip-20")
    for name in names[::9]:
        image = read_resized(root / name, 64, 32)[None]
        soft = parse_flipped(parser, image) if flip else parser.parse(image)
        if hard:
            soft = torch.stack([(soft.argmax(1) == label).float() for label in range(20)], dim=1)
        parts, body = group_soft(soft, lip, load_grouping("spreid", lip))
        row = file.index(name)
        # Another batch may round the last bit of a score the other way.
        assert np.abs(masks.parts[row].astype(int) - quantise(area_average(parts, (16, 8)))[0]).max() <= 1
        assert np.abs(masks.body[row].astype(int) - quantise(area_average(body, (64, 32)))[0, 0]).max() <= 1
        assert 0 <= masks.quality[row] <= 1
    assert masks.body.std() > 10


def test_the_order_and_repetition_of_names_do_not_matter(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    root, names = people
    shuffled = [*reversed(names), names[3]]
    run(tmp_path / "masks.h5", (root, shuffled), tiny_parser, batch_size=3)
    assert same_arrays(tmp_path / "masks.h5", undisturbed)


def test_square_parsers_see_own_proportions(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "square.onnx", size=(64, 64))
    model.with_name("square.onnx.toml").write_text('label_set = "lip-20"\nfit = "square"\n')
    names = write_people(tmp_path / "wide", 3, size=(40, 60)) + write_people(tmp_path / "tall", 3, size=(60, 20))
    people = (tmp_path, [f"{kind}/{name}" for kind in ("wide", "tall") for name in sorted(set(names))])
    assert run(tmp_path / "masks.h5", people, f"onnx:{model}").done == 6
    file = MaskFile.open(tmp_path / "masks.h5")
    masks, lip = file, load_label_set("lip-20")
    parser = load_parser(f"onnx:{model}", device="cpu")
    for name in people[1]:
        with Image.open(tmp_path / name) as picture:
            image = np.array(picture)
        side = max(image.shape[:2])
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
        square[top : top + image.shape[0], left : left + image.shape[1]] = image
        square = np.array(Image.fromarray(square).resize((64, 64), Image.Resampling.BILINEAR))
        _, body = group_soft(parser.parse(square[None]), lip, load_grouping("spreid", lip))
        area = np.array([[top, left, top + image.shape[0], left + image.shape[1]]]) / side
        expected = quantise(area_average(body, (64, 32), area))[0, 0].astype(int)
        # Pillow and OpenCV interpolate a little differently.
        assert np.abs(masks.body[file.index(name)] - expected).mean() < 3


def test_padded_images_have_masks_of_their_own_area(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "padded.onnx", size=(64, 32))
    model.with_name("padded.onnx.toml").write_text('label_set = "lip-20"\nfit = "pad"\n')
    people = (tmp_path, sorted(set(write_people(tmp_path, 3, size=(40, 40)))))
    run(tmp_path / "masks.h5", people, f"onnx:{model}")
    file, parser = MaskFile.open(tmp_path / "masks.h5"), load_parser(f"onnx:{model}", device="cpu")
    lip = load_label_set("lip-20")
    for name in people[1]:
        frame, area = fitted(read_image(tmp_path / name), 64, 32, "pad")
        assert area == (0, 0, 0.5, 1)
        _, body = group_soft(parser.parse(frame[None]), lip, load_grouping("spreid", lip))
        expected = quantise(area_average(body, (64, 32), np.array([area])))[0, 0]
        np.testing.assert_array_equal(file.body[file.index(name)], expected)


# Bad images ------------------------------------------------------------------------------------------------------


def add_unusable(root: Path) -> dict[str, str]:
    """Add images that cannot be used; returns a word of the reason for each."""
    jpeg = next(root.rglob("*.jpg")).read_bytes()
    long_name = "ä" * 100 + ".jpg"
    contents = {
        "cam0/truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cam0/zero.jpg": (b"", "empty"),
        "cam0/zeros.jpg": (bytes(1000), "not an image"),
        "cam0/text.jpg": (b"hello\n", "text file"),
        f"cam0/{long_name}": (b"hello\n", "text file"),
    }
    for name, (content, _) in contents.items():
        (root / name).write_bytes(content)
    Image.new("RGB", (1, 1)).save(root / "cam0" / "one.png")
    Image.new("RGB", (20_000, 10)).save(root / "cam0" / "strip.png")
    frames = [Image.new("L", (32, 64), value) for value in (0, 255)]
    frames[0].save(root / "cam0" / "film.gif", save_all=True, append_images=frames[1:])
    reasons = {name: word for name, (_, word) in contents.items()}
    return reasons | {"cam0/one.png": "implausible", "cam0/strip.png": "implausible", "cam0/film.gif": "animation"}


def test_bad_images_are_listed_and_disturb_no_other(tmp_path: Path, people: People, tiny_parser: str) -> None:
    root = tmp_path / "people"
    shutil.copytree(people[0], root)
    reasons = add_unusable(root)
    good = list(people[1])
    for name, picture in (
        ("cam0/grey.png", Image.new("L", (32, 64), 99)),
        ("cam0/cmyk.jpg", Image.new("CMYK", (32, 64), (9, 80, 70, 0))),
        ("cam0/sixteen.png", Image.fromarray(np.full((64, 32), 40_000, np.uint16))),
        ("cam0/人.png", Image.new("RGB", (32, 64))),
        (f"cam1/{'人' * 80}.jpg", Image.new("RGB", (32, 64), "red")),
    ):
        picture.save(root / name)
        good.append(name)
    names = [*good, *reasons, "cam1/missing.jpg"]
    report = run(tmp_path / "masks.h5", (root, names), tiny_parser, batch_size=4)
    failed = {rejected.path: rejected.reason for rejected in report.failed}
    assert set(failed) == {*reasons, "cam1/missing.jpg"}
    for name, word in reasons.items():
        assert word in failed[name]
    file = MaskFile.open(tmp_path / "masks.h5")
    masks = file
    for name in names:
        row = file.index(name)
        assert masks.status[row] == (FAILED if name in failed else OK)
        assert name not in failed or not masks.parts[row].any()
    # The same images without the bad ones between them, in other batches.
    run(tmp_path / "alone.h5", (root, good), tiny_parser, batch_size=4)
    alone = MaskFile.open(tmp_path / "alone.h5")
    for name in good:
        mine, other = masks.body[file.index(name)], alone.body[alone.index(name)]
        assert np.abs(mine.astype(int) - other).max() <= 1


def test_failed_images_are_tried_again(tmp_path: Path, people: People, tiny_parser: str) -> None:
    root = tmp_path / "people"
    shutil.copytree(people[0], root)
    name = people[1][5]
    whole_image = (root / name).read_bytes()
    (root / name).write_bytes(b"")
    out = tmp_path / "masks.h5"
    assert [rejected.path for rejected in run(out, (root, people[1]), tiny_parser, batch_size=3).failed] == [name]
    before = out.stat().st_mtime_ns
    again = run(out, (root, people[1]), tiny_parser, batch_size=3)
    assert (again.resumed, [(rejected.path, "empty" in rejected.reason) for rejected in again.failed]) == (
        40,
        [(name, True)],
    )
    assert out.stat().st_mtime_ns == before
    (root / name).write_bytes(whole_image)
    repaired = run(out, (root, people[1]), tiny_parser, batch_size=3)
    assert (repaired.resumed, repaired.failed, repaired.done) == (37, (), 40)
    run(tmp_path / "fresh.h5", people, tiny_parser, batch_size=3)
    assert same_arrays(out, tmp_path / "fresh.h5")


def test_no_images_is_an_error(tmp_path: Path, tiny_parser: str) -> None:
    with pytest.raises(DataError, match="no images"):
        run(tmp_path / "masks.h5", (tmp_path, []), tiny_parser)


# Label maps ------------------------------------------------------------------------------------------------------


def write_maps(folder: Path, names: list[str], classes: int = 20) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        path = (folder / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, classes, (64, 32), dtype=np.uint8)).save(path)


def test_label_maps(tmp_path: Path, people: People) -> None:
    root, names = people
    write_maps(tmp_path / "maps", names)
    report = run(tmp_path / "masks.h5", people, f"label-maps:{tmp_path / 'maps'}")
    assert (report.done, report.failed) == (40, ())
    file = MaskFile.open(tmp_path / "masks.h5")
    row = file.index(names[7])
    ids = np.array(Image.open((tmp_path / "maps" / names[7]).with_suffix(".png")))
    np.testing.assert_array_equal(file.body[row], np.where(ids > 0, 255, 0))
    cells = np.isin(ids, (8, 18, 19)).reshape(16, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(file.parts[row, 3], np.floor(cells * 255 + 0.5))
    # A folder that comes with the data set gives the same.
    config = MasksConfig(parser="label-maps", device="cpu", backend="threading", jobs=2)
    build_masks(tmp_path / "own.h5", root=root, names=names, config=config, label_maps=tmp_path / "maps")
    assert same_arrays(tmp_path / "own.h5", tmp_path / "masks.h5")


def test_a_file_guards_itself_against_other_contents_of_one_name(tmp_path: Path, people: People) -> None:
    _, names = people
    for folder, shift in (("first", 0), ("second", 1)):
        write_maps(tmp_path / folder, names, classes=4)
        for path in (tmp_path / folder).rglob("*.png"):
            Image.fromarray((np.array(Image.open(path)) + shift) % 4).save(path)
    out, grouping = tmp_path / "masks.h5", tmp_path / "mine.toml"
    grouping.write_text("lower = [9]\n")
    run(out, people, f"label-maps:{tmp_path / 'first'}", grouping=str(grouping))
    assert run(out, people, f"label-maps:{tmp_path / 'first'}", grouping=str(grouping)).resumed == 40
    with pytest.raises(FormatError, match="label_map:"):
        run(out, people, f"label-maps:{tmp_path / 'second'}", grouping=str(grouping))
    grouping.write_text("lower = [9, 12]\n")
    with pytest.raises(FormatError, match="rules_sha256"):
        run(out, people, f"label-maps:{tmp_path / 'first'}", grouping=str(grouping))


def test_a_description_that_changes_beside_a_model_counts(tmp_path: Path, people: People, tiny_parser: str) -> None:
    out, model = tmp_path / "masks.h5", Path(tiny_parser.partition(":")[2])
    for path in model.parent.glob(f"{model.name}*"):
        shutil.copy(path, tmp_path / path.name)
    own = f"{tiny_parser.partition(':')[0]}:{tmp_path / model.name}"
    run(out, people, own)
    sidecar = sidecar_path(tmp_path / model.name)
    sidecar.write_text(sidecar.read_text() + "\n# another description\n")
    with pytest.raises(FormatError, match="rules_sha256"):
        run(out, people, own)


def test_parsers_are_tried_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Noting(Fake):
        def parse(self, images: np.ndarray) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            return super().parse(images)

    source.batch_size(Noting(limit=40), torch.device("meta"), MasksConfig(), recipe_of(Noting()))
    source.compute_device(Noting())
    assert seen
    assert not any(seen)


def test_faulty_label_maps_are_listed(tmp_path: Path, people: People) -> None:
    _, names = people
    write_maps(tmp_path / "maps", names[2:])
    Image.fromarray(np.full((64, 32), 20, np.uint8)).save((tmp_path / "maps" / names[0]).with_suffix(".png"))
    report = run(tmp_path / "masks.h5", people, f"label-maps:{tmp_path / 'maps'}")
    assert [rejected.path for rejected in report.failed] == names[:2]
    assert "holds the id 20" in report.failed[0].reason
    assert report.failed[1].reason == "no label map"


def test_label_maps__without_any_person_are_reported(
    tmp_path: Path, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    """Binary masks are often written as 0 and 255, and 255 means that a pixel has no label."""
    root, names = people
    for number, name in enumerate(names):
        path = (tmp_path / "maps" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 32), 255 if number < 30 else 1, np.uint8)).save(path)
    config = MasksConfig(parser=f"label-maps:{tmp_path / 'maps'}")
    build_masks(tmp_path / "masks.h5", root=root, names=names, config=config)
    assert any("no label set" in text and "lip-20" in text for text in caplog.messages)
    (empty,) = [text for text in caplog.messages if "30 of 40" in text]
    assert min(names) in empty
    assert "255" in empty

    caplog.clear()
    few = [name for number, name in enumerate(names) if number < 3]
    build_masks(tmp_path / "few.h5", root=root, names=few, config=config)
    assert any("3 of 3" in text for text in caplog.messages)

    caplog.clear()
    write_maps(tmp_path / "good", names)
    named = MasksConfig(parser=f"label-maps:{tmp_path / 'good'}", label_set="lip-20")
    build_masks(tmp_path / "named.h5", root=root, names=names, config=named)
    assert caplog.messages == []


def test_label_maps__suffix_case_and_unicode_form_do_not_matter(tmp_path: Path) -> None:
    root, maps = tmp_path / "images", tmp_path / "maps"
    root.mkdir()
    maps.mkdir()
    names = ["a.jpg", unicodedata.normalize("NFC", "café.jpg")]
    for name in names:
        Image.new("RGB", (32, 64)).save(root / name)
    for name in ("a.PNG", unicodedata.normalize("NFD", "café.png")):
        Image.fromarray(np.full((64, 32), 5, np.uint8)).save(maps / name, format="PNG")
    assert run(tmp_path / "masks.h5", (root, names), f"label-maps:{maps}").done == 2


def test_label_maps__none_found_names_what_was_tried_and_what_exists(tmp_path: Path, people: People) -> None:
    _, names = people
    (tmp_path / "maps").mkdir()
    for stem in ("x_mask", "y_mask", "z_mask"):
        Image.fromarray(np.zeros((64, 32), np.uint8)).save(tmp_path / "maps" / f"{stem}.png")
    with pytest.raises(ConfigError, match=r"40 of 40 images .*x_mask\.png, y_mask\.png") as caught:
        run(tmp_path / "masks.h5", people, f"label-maps:{tmp_path / 'maps'}")
    stem = min(names).removesuffix(".jpg")
    assert f"{stem}.png" in (caught.value.expected or "")
    assert not (tmp_path / "masks.h5").exists()


def test_build_masks__no_usable_image_publishes_nothing_and_does_not_block_the_next_run(
    tmp_path: Path, people: People, tiny_parser: str
) -> None:
    out, names = tmp_path / "masks.h5", ["a.jpg", "b.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 images .*0 bytes"):
        run(out, (tmp_path, names), tiny_parser)
    assert not list(tmp_path.glob("masks.h5*"))
    for name in names:
        shutil.copy(people[0] / people[1][0], tmp_path / name)
    assert run(out, (tmp_path, names), tiny_parser, flip=True).done == 2
    assert value(out, "flip") is True


def test_label_maps_of_an_own_set_in_own_parts(tmp_path: Path, people: People) -> None:
    _, names = people
    write_maps(tmp_path / "maps", names[:4], classes=4)
    (tmp_path / "uniform.toml").write_text('classes = ["none", "helmet", "suit", "sword"]\nhead = [1]\nupper = [2]\n')
    (tmp_path / "armed.toml").write_text('lower = ["sword", "suit"]\nbody = ["helmet", "suit"]\n')
    own = {"label_set": str(tmp_path / "uniform.toml"), "grouping": str(tmp_path / "armed.toml")}
    run(tmp_path / "masks.h5", (people[0], names[:4]), f"label-maps:{tmp_path / 'maps'}", **own)
    file = MaskFile.open(tmp_path / "masks.h5")
    assert (file.provenance.values["label_set"], file.provenance.values["grouping"]) == ("uniform", "armed")
    masks = file
    assert masks.absent_parts == ("head", "upper", "shoes")
    for row, name in enumerate(file.names):
        ids = np.array(Image.open((tmp_path / "maps" / name).with_suffix(".png")))
        np.testing.assert_array_equal(masks.body[row], np.where((ids == 1) | (ids == 2), 255, 0))
        cells = (ids >= 2).reshape(16, 4, 8, 4).mean(axis=(1, 3))
        np.testing.assert_array_equal(masks.parts[row, 2], np.floor(cells * 255 + 0.5))
        assert not masks.parts[row, [0, 1, 3]].any()


def test_label_maps_do_not_flip_and_must_be_somewhere(tmp_path: Path, people: People) -> None:
    with pytest.raises(ConfigError, match="comes without label maps"):
        run(tmp_path / "masks.h5", people, "label-maps")
    with pytest.raises(ConfigError, match="mirror images"):
        run(tmp_path / "masks.h5", people, f"label-maps:{tmp_path}", flip=True)
    with pytest.raises(ConfigError, match="fields of pifpaf-36 overlap"):
        run(tmp_path / "masks.h5", people, f"label-maps:{tmp_path}", hard=True, label_set="pifpaf-36")


# Resuming --------------------------------------------------------------------------------------------------------


def test_a_finished_build_does_nothing_and_guards_its_file(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    out = tmp_path / "masks.h5"
    shutil.copy(undisturbed, out)
    before = out.stat().st_mtime_ns
    report = run(out, people, tiny_parser)
    assert (report.resumed, report.done, report.images_per_second) == (40, 40, 0.0)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(FormatError, match="flip changed from false to true"):
        run(out, people, tiny_parser, flip=True)
    with pytest.raises(FormatError, match="0 missing, 1 unexpected"):
        run(out, (people[0], people[1][:-1]), tiny_parser)


class Interrupting:
    """A progress that is interrupted after some images, as by Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.left = after

    def task(self, label: str, *, total: int | None, done: int = 0, unit: str = "images") -> Self:
        return self

    def advance(self, count: int = 1, /, **fields: float | str) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_an_interrupted_build_goes_on(tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path) -> None:
    out, (root, names) = tmp_path / "masks.h5", people
    config = MasksConfig(parser=tiny_parser, device="cpu", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        build_mask_file(out, root=root, names=names, config=config, progress=Interrupting(10))
    assert not out.exists()
    # With "auto" the batch size of the file is kept, or the sums would round differently.
    report = run(out, people, tiny_parser)
    assert report.resumed == 12
    assert same_arrays(out, undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.h5"]


def test_going_on_reads_the_unfinished_file_once(
    tmp_path: Path, people: People, tiny_parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, (root, names) = tmp_path / "masks.h5", people
    config = MasksConfig(parser=tiny_parser, device="cpu", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        build_mask_file(out, root=root, names=names, config=config, progress=Interrupting(10))
    checked: list[int] = []
    before = rows.corrupt_rows

    def counted(columns: dict[str, np.ndarray], status: np.ndarray, crc: np.ndarray) -> np.ndarray:
        checked.append(len(status))
        return before(columns, status, crc)

    monkeypatch.setattr(rows, "corrupt_rows", counted)
    assert run(out, people, tiny_parser).resumed == 12
    assert checked == [40]


def test_damage_to_a_partial_file_is_repaired(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    out, (root, names) = tmp_path / "masks.h5", people
    config = MasksConfig(parser=tiny_parser, device="cpu", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        build_mask_file(out, root=root, names=names, config=config, progress=Interrupting(30))
    with h5py.File(partial_path(out), "r+") as file:
        file["body"][4, 3, 3] ^= 64
    assert run(out, people, tiny_parser).resumed == 27
    assert same_arrays(out, undisturbed)


def test_a_partial_file_of_another_parser_is_refused(tmp_path: Path, people: People, tiny_parser: str) -> None:
    out, (root, names) = tmp_path / "masks.h5", people
    config = MasksConfig(parser=tiny_parser, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        build_mask_file(out, root=root, names=names, config=config, progress=Interrupting(1))
    other = write_onnx(tmp_path / "tiny.onnx", seed=1)
    with pytest.raises(FormatError, match="weights_sha256"):
        run(out, people, f"onnx:{other}", label_set="lip-20")


def kill_and_resume(folder: Path, people: People, parser: str, undisturbed: Path, kills: int, seed: int) -> int:
    """Kill builds at random moments and finish each; returns how many were killed while rows were being written."""
    context = multiprocessing.get_context("forkserver")
    # Imported once and forked from then on, so that the time goes into killing.
    context.set_forkserver_preload(["pipeline.masks.build", "onnxruntime"])
    rng, amid = random.Random(seed), 0
    for number in range(kills):
        out = folder / str(number) / "masks.h5"
        here, there = context.Pipe()
        builder = context.Process(target=mask_builder.main, args=(out, people[0], parser, 0.02, there))
        builder.start()
        there.close()
        # From the first breath to the publishing: 14 chunks after the beginning, and a moment more.
        chunks = rng.randint(0, 14)
        with contextlib.suppress(EOFError):
            for _ in range(chunks + 1):
                here.recv()
        time.sleep(rng.uniform(0, 0.1 if chunks == 0 else 0.03))
        builder.kill()
        builder.join()
        finished = unfinished_rows = 0
        if partial_path(out).exists():
            status = MaskFile.open(partial_path(out), allow_incomplete=True).status
            finished, unfinished_rows = int((status == OK).sum()), int((status != OK).sum())
        elif out.exists():
            finished = len(people[1])
        amid += finished > 0 and unfinished_rows > 0
        report = run(out, people, parser, batch_size=3)
        # Rows that were written are not made again, and the others are.
        assert report.resumed == finished
        assert same_arrays(out, undisturbed)
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    return amid


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_builds_end_in_the_same_arrays(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    assert kill_and_resume(tmp_path, people, tiny_parser, undisturbed, kills=3, seed=0) > 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_builds_killed_at_twenty_moments_end_in_the_same_arrays(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    assert kill_and_resume(tmp_path, people, tiny_parser, undisturbed, kills=20, seed=1) >= 10


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_build_killed_again_and_again_ends_in_the_same_arrays(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path
) -> None:
    out, context = tmp_path / "masks.h5", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.masks.build", "onnxruntime"])
    rng, seen = random.Random(2), []
    for _ in range(5):
        here, there = context.Pipe()
        builder = context.Process(target=mask_builder.main, args=(out, people[0], tiny_parser, 0.02, there))
        builder.start()
        there.close()
        for _ in range(rng.randint(2, 4)):
            here.recv()
        builder.kill()
        builder.join()
        status = MaskFile.open(partial_path(out), allow_incomplete=True).status
        seen.append(int((status == OK).sum()))
    assert seen == sorted(seen)
    assert 0 < seen[-1] < 40
    assert run(out, people, tiny_parser, batch_size=3).resumed == seen[-1]
    assert same_arrays(out, undisturbed)


def test_build_mask_file__place_where_no_file_can_be(tmp_path: Path, people: People, tiny_parser: str) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file" / "masks.h5", tmp_path / "folder"):
        with pytest.raises(ArtifactError):
            run(out, people, tiny_parser)


def test_build_mask_file__invalid_settings_leave_nothing(tmp_path: Path, people: People, tiny_parser: str) -> None:
    with pytest.raises(ConfigError, match="0 is not a number of workers"):
        run(tmp_path / "masks.h5", people, tiny_parser, backend="threading", jobs=0)
    assert not list(tmp_path.iterdir())


def test_build_mask_file__two_builds_of_one_file_exclude_each_other(
    tmp_path: Path, people: People, tiny_parser: str
) -> None:
    out = tmp_path / "masks.h5"
    with exclusive(out.with_name("masks.h5.lock"), out, "mask file"), pytest.raises(LockedError) as caught:
        run(out, people, tiny_parser)
    assert f"process {os.getpid()}" in (caught.value.expected or "")
    assert run(out, people, tiny_parser).done == 40
    assert [path.name for path in tmp_path.iterdir()] == ["masks.h5"]


# Workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_workers_make_the_same_file(
    tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path, backend: str
) -> None:
    run(tmp_path / "masks.h5", people, tiny_parser, batch_size=3, backend=backend, jobs=2)
    assert same_arrays(tmp_path / "masks.h5", undisturbed)


@pytest.mark.slow
def test_dask_workers_make_the_same_file(tmp_path: Path, people: People, tiny_parser: str, undisturbed: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster:
        address = cluster.scheduler_address
        run(tmp_path / "masks.h5", people, tiny_parser, batch_size=3, backend="dask", scheduler=address)
    assert same_arrays(tmp_path / "masks.h5", undisturbed)


# Batches, estimates, bad parsers ----------------------------------------------------------------------------------


class Fake:
    """A parser with a memory limit, in images, whose output can be invalid."""

    input_size = (256, 128)

    def __init__(self, limit: int = 10**9, fault: str = "", device: str = "") -> None:
        self.info = ParserInfo("fake", "1", load_label_set("lip-20"), "", "torch", "float32", device=device)
        self.limit, self.fault = limit, fault
        self.batches: list[int] = []

    def parse(self, images: Tensor | np.ndarray) -> Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError
        self.batches.append(len(images))
        soft = torch.full((len(images), 20, 2, 1), 1 / 20)
        if self.fault == "nan":
            soft[0, 0] = torch.nan
        return soft * 90 if self.fault == "scores" else soft[:, :7] if self.fault == "classes" else soft


def use(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    monkeypatch.setattr(source, "load_parser", lambda *args, **options: fake)


def test_the_automatic_batch_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People) -> None:
    use(monkeypatch, Fake())
    run(tmp_path / "masks.h5", people, "builtin")
    assert value(tmp_path / "masks.h5", "batch_size") == 64


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People, flip: bool) -> None:
    use(monkeypatch, Fake(limit=8))
    run(tmp_path / "masks.h5", people, "builtin", batch_size=8, flip=flip)
    with pytest.raises(DeviceError, match="9 images per batch"):
        run(tmp_path / "other.h5", people, "builtin", batch_size=9, flip=flip)


def test_the_processors_memory_may_be_too_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People
) -> None:
    class Exhausted(Fake):
        def parse(self, images: Tensor | np.ndarray) -> Tensor:
            return torch.empty(2**60)  # 4 exabytes

    use(monkeypatch, Exhausted(device="cpu"))
    with pytest.raises(DeviceError, match="64 images per batch") as caught:
        run(tmp_path / "masks.h5", people, "builtin", batch_size=64)
    assert "masks.batch_size=32" in (caught.value.hint or "")
    use(monkeypatch, Fake())
    run(tmp_path / "masks.h5", people, "builtin", batch_size=4)
    assert value(tmp_path / "masks.h5", "batch_size") == 4


def test_build_masks__batch_that_no_longer_fits_resumes_with_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People
) -> None:
    out, (root, names) = tmp_path / "masks.h5", people
    use(monkeypatch, Fake())
    config = MasksConfig(parser="builtin", device="cpu", batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        build_mask_file(out, root=root, names=names, config=config, progress=Interrupting(10))
    use(monkeypatch, Fake(limit=4))
    report = run(out, people, "builtin", batch_size=4)
    assert (report.done, report.resumed) == (40, 16)


def test_the_device_is_the_parsers_own_word_or_where_its_output_lies() -> None:
    # ONNX Runtime computes on a GPU and returns arrays of the processor.
    told, silent = Fake(device="cuda:1"), Fake()
    assert (source.compute_device(told), told.batches) == (torch.device("cuda:1"), [])
    assert (source.compute_device(silent), silent.batches) == (torch.device("cpu"), [1])
    for parser, count in ((told, 512), (silent, 64)):
        assert source.batch_size(parser, source.compute_device(parser), MasksConfig(), recipe_of(parser)) == count


def test_the_automatic_batch_shrinks_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, where the first guess is large.
    fake = Fake(limit=40)
    assert source.batch_size(fake, torch.device("meta"), MasksConfig(), recipe_of(fake)) == 32
    assert fake.batches == [32]
    with pytest.raises(DeviceError, match="one image"):
        source.batch_size(Fake(limit=0), torch.device("meta"), MasksConfig(), recipe_of(fake))


def recipe_of(parser: Fake) -> Recipe:
    return Recipe(load_grouping("spreid", parser.info.label_set))


@pytest.mark.parametrize(
    ("fault", "found"), [("nan", "values from nan"), ("scores", "values from"), ("classes", r"shape \(40, 7, 2, 1\)")]
)
def test_parsers_that_give_something_else_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People, fault: str, found: str
) -> None:
    use(monkeypatch, Fake(fault=fault))
    with pytest.raises(FormatError, match=found):
        run(tmp_path / "masks.h5", people, "builtin")


def test_long_builds_on_a_cpu_are_announced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Fake())
    clock = iter(range(0, 10**9, 400))
    monkeypatch.setattr(build.time, "monotonic", lambda: float(next(clock)))
    config = MasksConfig(parser="schp:model.pth", device="cpu", batch_size=5, flip=True)
    build_masks(tmp_path / "masks.h5", root=people[0], names=people[1], config=config)
    # 400 s per batch of 5: after 20 images, 20 more take 27 minutes, which is under the limit of 30.
    assert not any("min more" in text for text in caplog.messages)
    monkeypatch.setattr(build, "_LONG_BUILD", 20 * 60.0)
    build_masks(tmp_path / "other.h5", root=people[0], names=people[1], config=config)
    (warning,) = [text for text in caplog.messages if "min more" in text]
    assert "27 min" in warning
    assert "built-in parser" in warning
    assert "masks.flip" in warning

"""inspect, stats, preview and export of mask files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError, FormatError
from pipeline.formats.masks import FAILED, OK, MaskFile, open_mask_writer
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import RowWriter
from pipeline.masks.export import BPBREID_CHANNELS, export_masks
from pipeline.masks.inspect import describe_file, describe_image, resolve_name
from pipeline.masks.preview import HEIGHT, PART_COLOURS, WIDTH, mask_sheet, overlay, spread_names
from pipeline.masks.stats import mask_stats, worst_names
from tests.helpers.tiny_models import write_people

NAMES = ["cam0/0000.jpg", "cam0/0002.jpg", "cam1/0001.jpg", "cam1/0003.jpg"]
# Rows of 16 that each part takes, in columns 2 to 5 of 8.
UPRIGHT = ((1, 3), (3, 8), (8, 14), (14, 16))
UPSIDE_DOWN = ((14, 16), (8, 14), (3, 8), (1, 3))
LEGS_ONLY = ((0, 0), (0, 0), (2, 10), (0, 0))


def writer_of(path: Path, names: list[str], absent: str | None = None) -> RowWriter:
    values = {"parser": "drawn", "parser_version": "1", "label_set": "lip-20", "absent_parts": absent, "hard": False}
    return open_mask_writer(path, names, Provenance(values))


def draw(spans: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    parts = np.zeros((4, 16, 8), np.uint8)
    for part, (begin, end) in enumerate(spans):
        parts[part, begin:end, 2:6] = 255
    return parts, np.kron(parts.max(axis=0), np.ones((4, 4), np.uint8))


def write(path: Path, absent: str | None = None) -> MaskFile:
    drawn = [draw(spans) for spans in (UPRIGHT, UPSIDE_DOWN, LEGS_ONLY, ((0, 0),) * 4)]
    parts, body = (np.stack([pair[index] for pair in drawn]) for index in (0, 1))
    with writer_of(path, NAMES, absent) as writer:
        columns = {"parts": parts, "body": body, "quality": np.array([0.9, 0.2, 0.5, 0], np.float32)}
        writer.write(0, columns, np.array([OK, OK, OK, FAILED], np.uint8), {3: "the file is empty"})
        writer.finish()
    return MaskFile.open(path)


@pytest.fixture
def file(tmp_path: Path) -> MaskFile:
    return write(tmp_path / "masks.h5")


# stats ------------------------------------------------------------------------------------------------------------


def test_stats(file: MaskFile) -> None:
    stats = mask_stats(file)
    assert (stats.images, stats.failed) == (4, 1)
    head, _, lower, _ = stats.parts
    assert (head.present, head.area) == (pytest.approx(2 / 3), pytest.approx(8 / 128))
    assert head.height == pytest.approx((2 / 16 + 15 / 16) / 2)
    assert lower.present == 1
    assert stats.area_mean == pytest.approx((60 + 60 + 32) / 3 / 128)
    assert (stats.area_plausible, stats.empty) == (1, 0)
    assert (stats.complete, stats.order_plausible) == (pytest.approx(2 / 3), 0.5)
    assert stats.implausible == pytest.approx(1 / 3)
    assert stats.quality_mean == pytest.approx(1.6 / 3)
    assert stats.worst == ("cam0/0002.jpg", "cam1/0001.jpg", "cam0/0000.jpg")
    assert worst_names(file, 1) == ("cam0/0002.jpg",)


def test_stats_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with writer_of(path, ["a.jpg"], "shoes") as writer:
        blank = {"parts": np.zeros((1, 4, 16, 8)), "body": np.zeros((1, 64, 32)), "quality": np.zeros(1)}
        writer.write(0, blank, np.array([FAILED], np.uint8))
        writer.finish()
    stats = mask_stats(MaskFile.open(path))
    assert (stats.failed, stats.area_mean, stats.implausible, stats.worst) == (1, 0, 0, ())
    assert [part.absent for part in stats.parts] == [False, False, False, True]


# inspect ----------------------------------------------------------------------------------------------------------


def test_a_file_in_words(tmp_path: Path) -> None:
    write(tmp_path / "masks.h5", absent="shoes")
    description = describe_file(tmp_path / "masks.h5")
    assert (description.images, description.done, description.pending) == (4, 3, 0)
    assert description.failed == {"cam1/0003.jpg": "the file is empty"}
    assert description.quality == pytest.approx((0.26, 0.5, 0.82))
    text = " ".join(description.lines())
    for words in ("4 images: 3 with masks, 1 failed; complete", "drawn", "shoes", "soft"):
        assert words in text


def test_statistics_of_an_unfinished_file_tell_what_is_to_do(tmp_path: Path) -> None:
    writer_of(tmp_path / "masks.h5", NAMES).close()
    stats = mask_stats(MaskFile.open(tmp_path / "masks.h5", allow_incomplete=True))
    assert (stats.images, stats.done, stats.pending, stats.failed) == (4, 0, 4, 0)


def test_an_unfinished_file_in_words(tmp_path: Path) -> None:
    writer_of(tmp_path / "masks.h5", NAMES).close()
    description = describe_file(tmp_path / "masks.h5")
    assert description.quality == (0, 0, 0)
    assert "4 pending" in description.lines()[0]


def test_an_image_in_words(file: MaskFile) -> None:
    upright = describe_image(file.path, "0000.jpg")
    assert (upright.name, upright.state, upright.ordered) == ("cam0/0000.jpg", "ok", True)
    assert upright.area == pytest.approx(60 / 128)
    assert upright.map == (
        "........", *["..HHHH.."] * 2, *["..UUUU.."] * 5, *["..LLLL.."] * 6, *["..SSSS.."] * 2
    )  # fmt: skip
    assert "parts in order from head to shoes" in upright.lines()
    assert "parts out of order" in describe_image(file.path, "cam0/0002.jpg").lines()
    legs = describe_image(file.path, "cam1/0001.jpg")
    assert [part.present for part in legs.parts] == [False, False, True, False]
    assert "head: absent" in legs.lines()
    assert describe_image(file.path, "0003.jpg").lines() == ["cam1/0003.jpg: failed, no masks (the file is empty)"]


def test_names_that_are_unknown_or_not_clear(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    writer_of(path, ["a/1.jpg", "b/1.jpg"]).close()
    file = MaskFile.open(path, allow_incomplete=True)
    assert resolve_name(file, "a/1.jpg") == "a/1.jpg"
    with pytest.raises(FormatError, match="2 images match"):
        resolve_name(file, "1.jpg")
    with pytest.raises(FormatError, match="no image") as caught:
        resolve_name(file, "a/l.jpg")
    assert caught.value.hint == "did you mean 'a/1.jpg'?"


# preview ----------------------------------------------------------------------------------------------------------


def test_overlay_tints_by_occupancy() -> None:
    image = np.full((32, 16, 3), 100, np.uint8)
    parts = np.zeros((4, 16, 8), np.uint8)
    parts[0, :8] = 255
    tinted = overlay(image, parts)
    expected = np.rint(100 * 0.35 + 0.65 * np.array(PART_COLOURS["head"]))
    np.testing.assert_array_equal(tinted[0, 0], expected)
    np.testing.assert_array_equal(tinted[31, 15], image[31, 15])


def test_the_sheet_shows_image_mask_and_parts(tmp_path: Path, file: MaskFile) -> None:
    write_people(tmp_path, 4)
    (tmp_path / "cam0" / "0002.jpg").unlink()
    sheet = mask_sheet(file, tmp_path, NAMES, columns=3)
    assert sheet.shape[1] == 8 + 3 * (3 * WIDTH + 3 * 8)
    assert sheet.dtype == np.uint8
    body = sheet[24 + 8 : 24 + 8 + HEIGHT, 8 + WIDTH + 8 : 8 + WIDTH + 8 + WIDTH]
    expected = Image.fromarray(file.body[0]).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(body[:, :, 0], np.array(expected))


def test_sheets_that_cannot_be_drawn(tmp_path: Path, file: MaskFile) -> None:
    with pytest.raises(DataError, match="0 images to draw"):
        mask_sheet(file, tmp_path, [])
    with pytest.raises(DataError, match="none of the 4 images"):
        mask_sheet(file, tmp_path / "elsewhere", NAMES)


def test_choosing_images(file: MaskFile) -> None:
    assert spread_names(file, 10) == tuple(NAMES[:3])
    assert spread_names(file, 2) == (NAMES[0], NAMES[1])
    drawn = spread_names(file, 2, seed=1)
    assert drawn == spread_names(file, 2, seed=1)
    assert set(drawn) < set(NAMES[:3])


# export -----------------------------------------------------------------------------------------------------------


def test_png_export(tmp_path: Path) -> None:
    file = write(tmp_path / "masks.h5", absent="shoes")
    report = export_masks(file, tmp_path / "out", "png")
    assert (report.images, report.left_out) == (3, 1)
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == sorted(f"{kind}/{name}.png" for kind in ("body", "head", "upper", "lower") for name in NAMES[:3])
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out/lower/cam1/0001.jpg.png")), file.parts[2, 2])


def test_npz_export(tmp_path: Path, file: MaskFile) -> None:
    export_masks(file, tmp_path / "masks.npz", "npz")
    with np.load(tmp_path / "masks.npz") as archive:
        assert archive["names"].tolist() == NAMES
        assert archive["part_names"].tolist() == ["head", "upper", "lower", "shoes"]
        np.testing.assert_array_equal(archive["parts"], file.parts)
        np.testing.assert_array_equal(archive["status"], [1, 1, 1, 2])


# BPBreID's grouping `four_v`, by channel, written out from its documentation: each part is a maximum over its fields.
FOUR_V = {
    "head": [0, 1, 2, 3, 4, 29, 30, 31, 32, 33, 34, 35],
    "arms_torso": [7, 8, 9, 10, 5, 6, 11, 12, 21, 22, 23, 24, 25, 26, 27, 28],
    "legs": [11, 12, 13, 14, 17, 18, 19, 20],
    "feet": [15, 16],
}


def test_bpbreid_export_gives_our_parts_under_its_grouping(tmp_path: Path, file: MaskFile) -> None:
    export_masks(file, tmp_path / "masks", "bpbreid")
    for row, name in enumerate(NAMES[:3]):
        folder, stem = name.removesuffix(".jpg").split("/")
        fields = np.load(tmp_path / "masks" / "pifpaf_maskrcnn_filtering" / folder / f"{stem}.npy")
        assert (fields.shape, fields.dtype) == ((36, 16, 8), np.float32)
        grouped = np.stack([fields[channels].max(axis=0) for channels in FOUR_V.values()])
        np.testing.assert_allclose(grouped, file.parts[row] / 255)
    assert sorted(index for channels in BPBREID_CHANNELS.values() for index in channels) == [
        index for index in range(36) if index not in (11, 12)
    ]


def test_exports_that_cannot_be_made(tmp_path: Path, file: MaskFile) -> None:
    with pytest.raises(ConfigError, match="'pgn'") as caught:
        export_masks(file, tmp_path / "out", "pgn")
    assert caught.value.hint == "did you mean 'png'?"
    with pytest.raises(ConfigError, match="not empty"):
        export_masks(file, tmp_path, "png")
    with pytest.raises(ConfigError, match="no suffix"):
        export_masks(file, tmp_path / "out", "npz")
    export_masks(file, tmp_path / "masks.npz", "npz")
    with pytest.raises(ConfigError, match="exists"):
        export_masks(file, tmp_path / "masks.npz", "npz")


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, file: MaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space") as caught:
        export_masks(file, tmp_path / "out", "png")
    assert caught.value.filename == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["masks.h5"]


def test_bpbreid_cannot_tell_some_images_apart(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    drawn = draw(UPRIGHT)
    with writer_of(path, ["x/cam0/1.jpg", "y/cam0/1.jpg"]) as writer:
        columns = {"parts": np.stack([drawn[0]] * 2), "body": np.stack([drawn[1]] * 2), "quality": np.ones(2)}
        writer.write(0, columns, np.ones(2, np.uint8))
        writer.finish()
    with pytest.raises(FormatError, match="one file for two images"):
        export_masks(MaskFile.open(path), tmp_path / "masks", "bpbreid")
    assert not (tmp_path / "masks" / "pifpaf_maskrcnn_filtering").exists()

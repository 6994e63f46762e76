from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError, FormatError
from pipeline.parsing.labelmaps import LabelMaps
from pipeline.parsing.labels import load_label_set

LIP = load_label_set("lip-20")
IDS = np.array([[0, 1, 2], [13, 19, 255]], np.uint8)
EXPECTED = np.array([[0, 1, 2], [13, 19, 0]])
NAMES = ["cam0/0001.jpg", "cam1/0002.jpg", "0003.jpg"]


def palette(ids: np.ndarray) -> Image.Image:
    picture = Image.fromarray(ids, "P")
    # Colours that say other things than the indices do, as in the published previews.
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return picture


def read(folder: Path, name: str = "cam0/0001.jpg") -> np.ndarray:
    soft = LabelMaps(folder, NAMES, LIP).read(name)
    assert soft.shape[:2] == (1, 20)
    torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]))
    return soft[0].argmax(0).numpy()


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.mark.parametrize(
    "picture",
    [
        palette(IDS),
        Image.fromarray(IDS),
        Image.fromarray(IDS.astype(np.uint16)),
        Image.fromarray(np.repeat(IDS[:, :, None], 3, axis=2)),
    ],
    ids=["palette", "grey", "grey16", "grey as rgb"],
)
def test_pictures_of_every_kind(tmp_path: Path, picture: Image.Image) -> None:
    save(tmp_path / "cam0" / "0001.png", picture)
    np.testing.assert_array_equal(read(tmp_path), EXPECTED)


def test_palettes_are_read_as_indices_where_optimised_away(tmp_path: Path) -> None:
    # Four labels are stored with 2 bits a pixel, and come back as the same labels.
    save(tmp_path / "cam0" / "0001.png", palette(np.array([[0, 1], [2, 3]], np.uint8)))
    np.testing.assert_array_equal(read(tmp_path), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "place",
    ["cam0/0001.png", "cam0/0001.jpg.png", "0001.png", "0001.jpg.png"],
)
def test_places(tmp_path: Path, place: str) -> None:
    save(tmp_path / place, palette(IDS))
    np.testing.assert_array_equal(read(tmp_path), EXPECTED)


def test_previews_beside_the_ids_are_not_taken(tmp_path: Path) -> None:
    save(tmp_path / "0001.png", Image.fromarray(IDS))
    save(tmp_path / "0001_vis.png", Image.fromarray(np.full((2, 3, 3), (200, 10, 10), np.uint8)))
    np.testing.assert_array_equal(read(tmp_path), EXPECTED)
    assert LabelMaps(tmp_path, NAMES, LIP).find("cam0/0001.jpg") == tmp_path / "0001.png"


def test_the_mirrored_folder_wins(tmp_path: Path) -> None:
    save(tmp_path / "0001.png", Image.fromarray(np.zeros((2, 3), np.uint8)))
    save(tmp_path / "cam0" / "0001.png", Image.fromarray(IDS))
    np.testing.assert_array_equal(read(tmp_path), EXPECTED)


def test_a_map_that_may_be_another_images_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "0001.png", Image.fromarray(IDS))
    maps = LabelMaps(tmp_path, ["cam0/0001.jpg", "cam1/0001.jpg"], LIP)
    with pytest.raises(FormatError, match="several images are called '0001'"):
        maps.find("cam1/0001.jpg")


def test_images_that_differ_by_their_endings_need_whole_names(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", Image.fromarray(IDS))
    maps = LabelMaps(tmp_path, ["a/1.jpg", "a/1.png"], LIP)
    with pytest.raises(FormatError, match="no label map"):
        maps.find("a/1.jpg")
    for name in ("1.jpg.png", "1.png.png"):
        save(tmp_path / "a" / name, Image.fromarray(IDS))
    maps = LabelMaps(tmp_path, ["a/1.jpg", "a/1.png"], LIP)
    assert maps.find("a/1.jpg") == tmp_path / "a" / "1.jpg.png"
    assert maps.find("a/1.png") == tmp_path / "a" / "1.png.png"


def test_arrays_of_ids_and_of_soft_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "0003.npy", IDS.astype(np.int32))
    np.testing.assert_array_equal(read(tmp_path, "0003.jpg"), EXPECTED)
    soft = torch.rand(20, 3, 2).softmax(0).numpy()
    np.save(tmp_path / "0003.npy", soft)
    torch.testing.assert_close(LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")[0], torch.from_numpy(soft))


def test_confidence_fields_of_pifpaf(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).random((36, 9, 5)).astype(np.float32)
    (tmp_path / "cam0").mkdir()
    np.save(tmp_path / "cam0" / "0001.jpg.confidence_fields.npy", fields)
    read_back = LabelMaps(tmp_path, NAMES, load_label_set("pifpaf-36")).read("cam0/0001.jpg")
    np.testing.assert_array_equal(read_back[0].numpy(), fields)


def test_ids_outside_the_label_set_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "0003.png", palette(np.array([[0, 20]], np.uint8)))
    with pytest.raises(FormatError, match="holds the id 20") as caught:
        LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    assert "0 to 19 (lip-20), or 255" in (caught.value.expected or "")
    np.save(tmp_path / "0003.npy", np.array([[-1, 3]]))
    (tmp_path / "0003.png").unlink()
    with pytest.raises(FormatError, match="holds the id -1"):
        LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")


def test_faulty_maps_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no label map"):
        LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "0003.png")
    with pytest.raises(FormatError, match="colour image"):
        LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    body = (tmp_path / "0003.png").read_bytes()
    for content in (b"", b"text", body[: len(body) // 2]):
        (tmp_path / "0003.png").write_bytes(content)
        with pytest.raises(FormatError, match="cannot be read"):
            LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    (tmp_path / "0003.png").unlink()
    for array, found in (
        (np.zeros((18, 4, 4), np.float32), "shape"),
        (np.full((20, 4, 4), 2.0), "outside"),
        (np.full((20, 4, 4), np.nan), "outside"),
        (np.zeros((4, 4), np.float32), "not valid for lip-20"),
        (np.zeros(4), "shape"),
        (np.array([{"a": 1}]), "cannot be read"),
    ):
        np.save(tmp_path / "0003.npy", array)
        with pytest.raises(FormatError, match=found):
            LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    np.save(tmp_path / "0003.npy", IDS)
    huge = (tmp_path / "0003.npy").read_bytes().replace(b"(2, 3)", b"(2000000000000, 3)".ljust(6))
    np.savez(tmp_path / "archive.npz", ids=IDS)
    for content in (huge, b"PK\x03\x04 no archive", (tmp_path / "archive.npz").read_bytes()):
        (tmp_path / "0003.npy").write_bytes(content)
        with pytest.raises(FormatError, match="cannot be read"):
            LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")
    (tmp_path / "0003.npy").unlink()
    # A picture whose header claims 40,000 x 40,000 pixels.
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "0003.png").write_bytes(body[:8] + chunk + body[33:])
    with pytest.raises(FormatError, match="cannot be read"):
        LabelMaps(tmp_path, NAMES, LIP).read("0003.jpg")


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        LabelMaps(tmp_path / "missing", NAMES, LIP)

"""Occluded-DukeMTMC from made-up archives of DukeMTMC-reID."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from pipeline.datasets.occluded_duke_zip import extract_occluded_duke
from pipeline.datasets.registry import open_dataset
from pipeline.errors import DataError
from tests.helpers.dataset_trees import duke_tree, occluded_duke_lists

DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c3_f0046182.jpg", "0002_c1_f0044158.jpg"],
    "query": ["0005_c2_f0046985.jpg", "0009_c1_f0044946.jpg"],
    "bounding_box_test": ["0005_c1_f0046985.jpg", "0009_c3_f0044946.jpg", "7140_c8_f0000001.jpg"],
}
LISTS = {
    "train": DUKE["bounding_box_train"][:2],
    "query": ["0005_c1_f0046985.jpg", "0009_c1_f0044946.jpg"],
    "gallery": DUKE["bounding_box_test"],
}


def jpeg(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 32), (shade % 256, 90, 60)).save(stream, "JPEG")
    return stream.getvalue()


def pack(path: Path, tree: Mapping[str, list[str]], *, prefix: str = "DukeMTMC-reID/", content: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{prefix}readme.txt", "hello")
        for folder, names in tree.items():
            for number, name in enumerate(names):
                archive.writestr(f"{prefix}{folder}/{name}", content or jpeg(number))
    return path


def write_lists(folder: Path, lists: Mapping[str, list[str]] = LISTS) -> Path:
    folder.mkdir()
    for split, names in lists.items():
        (folder / f"{split}.list").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.mark.parametrize("prefix", ["", "DukeMTMC-reID/", "a/b/c/"])
def test_the_listed_images_are_unpacked(prefix: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / "duke.zip", DUKE, prefix=prefix)
    made = extract_occluded_duke(archive, write_lists(tmp_path / "lists"), tmp_path / "out")
    assert made.images == {"bounding_box_train": 2, "query": 2, "bounding_box_test": 3}
    assert made.double == 1
    dataset = open_dataset(f"occluded-duke:{made.root}", expect_counts=False)
    assert {split: [Path(r.path).name for r in dataset.split(split)] for split in LISTS} == LISTS
    # The double one lies in both folders, equal to the byte; the other query comes from the archive's queries.
    double = made.root / "query" / "0005_c1_f0046985.jpg"
    assert double.read_bytes() == (made.root / "bounding_box_test" / "0005_c1_f0046985.jpg").read_bytes() == jpeg(0)
    assert (made.root / "query" / "0009_c1_f0044946.jpg").read_bytes() == jpeg(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duke.zip", "lists", "out"]


def test_the_result_reads_like_the_lists_beside_the_unpacked_archive(tmp_path: Path) -> None:
    archive = pack(tmp_path / "duke.zip", DUKE)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "tree")
    write_lists(tmp_path / "tree" / "Occluded_Duke")
    made = extract_occluded_duke(archive, tmp_path / "tree", tmp_path / "out")
    first, second = (
        open_dataset(f"occluded-duke:{root}", expect_counts=False) for root in (tmp_path / "tree", made.root)
    )
    for a, b in zip(first.records, second.records, strict=True):
        assert (a.pid, a.camid, a.split, Path(a.path).name) == (b.pid, b.camid, b.split, Path(b.path).name)
        assert first.path_of(a).read_bytes() == second.path_of(b).read_bytes()


@pytest.mark.slow
def test_the_real_counts(tmp_path: Path) -> None:
    archive = pack(tmp_path / "duke.zip", duke_tree(), content=jpeg())
    made = extract_occluded_duke(archive, write_lists(tmp_path / "lists", occluded_duke_lists()), tmp_path / "out")
    assert made.double == 1_870
    assert len(open_dataset(f"occluded-duke:{made.root}").records) == 15_618 + 2_210 + 17_661


def refused(archive: Path, lists: Path, out: Path) -> str:
    with pytest.raises(DataError) as caught:
        extract_occluded_duke(archive, lists, out)
    assert not [path for path in out.parent.iterdir() if "partial" in path.name]
    return str(caught.value)


def test_images_that_the_archive_lacks_are_named(tmp_path: Path) -> None:
    tree = {**DUKE, "bounding_box_train": DUKE["bounding_box_train"][1:]}
    text = refused(pack(tmp_path / "duke.zip", tree), write_lists(tmp_path / "lists"), tmp_path / "out")
    assert "lacks 1 of 7 listed images: 0001_c2_f0046182.jpg (train)" in text
    assert not (tmp_path / "out").exists()


def test_an_archive_that_wants_out_of_its_folder_cannot(tmp_path: Path) -> None:
    archive = pack(tmp_path / "duke.zip", DUKE, prefix="../../evil/")
    assert "lacks 7 of 7" in refused(archive, write_lists(tmp_path / "lists"), tmp_path / "out")


def test_damage_and_passwords_are_reported_with_the_member(tmp_path: Path) -> None:
    lists = write_lists(tmp_path / "lists")
    archive = pack(tmp_path / "duke.zip", DUKE)
    data = archive.read_bytes()
    at = data.index(b"bounding_box_train/0001_c2_f0046182.jpg") + 100
    archive.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    assert "0001_c2_f0046182.jpg is damaged in the archive" in refused(archive, lists, tmp_path / "out")
    # The flag of encryption, in the local header and in the central directory.
    locked = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := locked.find(signature, at + 1)) >= 0:
            locked[at + offset] |= 1
    archive.write_bytes(locked)
    assert "cannot be unpacked" in refused(archive, lists, tmp_path / "out")
    archive.write_bytes(data[: len(data) // 2])
    assert "not a zip file" in refused(archive, lists, tmp_path / "out")
    assert "cannot be read" in refused(tmp_path / "none.zip", lists, tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damage_is_told_however_the_archive_is_packed(method: int, tmp_path: Path) -> None:
    archive = tmp_path / "duke.zip"
    with zipfile.ZipFile(archive, "w", method) as writer:
        for folder, names in DUKE.items():
            for name in names:
                writer.writestr(f"{folder}/{name}", bytes(range(256)) * 40)
        damaged = writer.getinfo("bounding_box_train/0001_c2_f0046182.jpg")
    data = bytearray(archive.read_bytes())
    start = damaged.header_offset + 30 + len(damaged.filename)
    data[start + 12 : start + damaged.compress_size] = bytes(damaged.compress_size - 12)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"0001_c2_f0046182\.jpg is damaged in the archive") as caught:
        extract_occluded_duke(archive, write_lists(tmp_path / "lists"), tmp_path / "out")
    assert str(archive) in str(caught.value)


def test_lists_and_target_are_checked_first(tmp_path: Path) -> None:
    archive = pack(tmp_path / "duke.zip", DUKE)
    assert "does not exist" in refused(archive, tmp_path / "none", tmp_path / "out")
    assert "does not hold train.list" in refused(archive, tmp_path, tmp_path / "out")
    lists = write_lists(tmp_path / "lists")
    (tmp_path / "there").mkdir()
    assert "folder exists" in refused(archive, lists, tmp_path / "there")
    with (lists / "query.list").open("a") as stream:
        stream.write("../../someone.jpg\n")
    assert "'someone.jpg' does not follow the layout" in refused(archive, lists, tmp_path / "out")


def test_the_reader_points_from_lists_beside_an_archive_to_the_command(tmp_path: Path) -> None:
    pack(tmp_path / "DukeMTMC-reID.zip", DUKE)
    lists = write_lists(tmp_path / "Occluded_Duke")
    with pytest.raises(DataError) as caught:
        open_dataset(f"occluded-duke:{tmp_path}", expect_counts=False)
    assert caught.value.where == str(lists)
    assert "occluded-duke" in (caught.value.hint or "")
    assert str(tmp_path / "DukeMTMC-reID.zip") in (caught.value.hint or "")
    with pytest.raises(DataError) as caught:
        open_dataset(f"dukemtmc:{tmp_path / 'DukeMTMC-reID.zip'}")
    assert "unpack the archive" in str(caught.value)

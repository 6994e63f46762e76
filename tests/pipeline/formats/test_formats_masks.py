from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from pipeline.errors import ArtifactError, FormatError, UserError
from pipeline.formats import rows
from pipeline.formats.masks import FAILED, OK, PENDING, MaskFile, open_mask_writer
from pipeline.formats.provenance import Provenance
from pipeline.formats.rows import RowWriter
from pipeline.runtime.files import reserve

VALUES = {
    "parser": "tiny",
    "parser_version": "3",
    "label_set": "pascal-7",
    "absent_parts": "shoes",
    "flip": True,
    "backend": "torch",
    "batch_size": 4,
}
RECORD = Provenance(VALUES)
NAMES = sorted(["a/0001.jpg", "a/0002.jpg", "b/ÄÖ 人.jpg", "b/" + "x" * 200 + ".jpg", "b/y.jpg", "b/z.jpg"])

KEYS = ("parts", "body", "quality", "status")


def arrays(count: int = len(NAMES)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    made = {
        "parts": rng.integers(0, 256, (count, 4, 16, 8), dtype=np.uint8),
        "body": rng.integers(0, 256, (count, 64, 32), dtype=np.uint8),
        "quality": rng.random(count, dtype=np.float32),
        "status": np.full(count, OK, np.uint8),
    }
    for array in made.values():
        array[2] = 0
    made["status"][2] = FAILED
    return made


def write_rows(writer: RowWriter, start: int, stop: int) -> None:
    some = {key: array[start:stop] for key, array in arrays().items()}
    status = some.pop("status")
    writer.write(start, some, status, {2: "the image is truncated"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "masks.h5"
    with open_mask_writer(path, NAMES, RECORD) as writer:
        write_rows(writer, 0, 4)
        write_rows(writer, 4, 6)
        writer.finish()
    return path


def test_what_is_written_comes_back(path: Path) -> None:
    file = MaskFile.open(path)
    masks = file
    for key, expected in arrays().items():
        np.testing.assert_array_equal(getattr(masks, key), expected)
    assert file.reasons == {2: "the image is truncated"}
    assert masks.names == file.names == tuple(NAMES)
    assert masks.absent_parts == ("shoes",)
    assert file.provenance == RECORD
    assert file.complete
    assert [file.index(name) for name in NAMES] == list(range(6))
    assert ("b/y.jpg" in file, "y.jpg" in file, len(file), len(masks)) == (True, False, 6, 6)
    with pytest.raises(FormatError, match=r"no image 'y\.jpg'"):
        file.index("y.jpg")
    assert [each.name for each in path.parent.iterdir()] == ["masks.h5"]


def test_the_layout_is_the_documented_one(path: Path) -> None:
    # With h5py alone, as docs/formats/masks.md shows it.
    with h5py.File(path) as file:
        assert file["parts"].shape == (6, 4, 16, 8)
        assert file["body"].shape == (6, 64, 32)
        assert {key: file[key].dtype.str for key in ("parts", "body", "quality", "status", "crc")} == {
            "parts": "|u1", "body": "|u1", "quality": "<f4", "status": "|u1", "crc": "<u4"
        }  # fmt: skip
        for key in file:
            assert (file[key].chunks, file[key].compression) == (None, None)
        assert list(file["names"].asstr()[:]) == NAMES
        assert file.attrs["format"] == "sgsfa-masks"
        assert file.attrs["format_version"] == 1
        assert file.attrs["part_names"] == "head,upper,lower,shoes"
        assert json.loads(file.attrs["provenance"]) == VALUES
        assert file["reason"].asstr()[2] == "the image is truncated"
        row = 1
        crc = zlib.crc32(file["parts"][row].tobytes() + file["body"][row].tobytes())
        crc = zlib.crc32(file["quality"][row].tobytes() + file["status"][row].tobytes(), crc)
        assert file["crc"][row] == crc


def test_an_unfinished_file_is_refused_and_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with open_mask_writer(path, NAMES, RECORD) as writer:
        write_rows(writer, 0, 3)
        with pytest.raises(ValueError, match="still pending"):
            writer.finish()
    with pytest.raises(FormatError, match="3 of 6"):
        MaskFile.open(path)
    assert not MaskFile.open(path, allow_incomplete=True).complete
    elsewhere = Provenance({**VALUES, "batch_size": 64, "backend": "other", "precision": "bfloat16"})
    with open_mask_writer(path, NAMES, elsewhere) as writer:
        assert writer.status.tolist() == [OK, OK, FAILED, PENDING, PENDING, PENDING]
        assert writer.provenance.values["batch_size"] == 4
        write_rows(writer, 3, 6)
        writer.finish()
    np.testing.assert_array_equal(MaskFile.open(path).parts, arrays()["parts"])


def test_rows_that_were_not_finished_are_pending_again(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with open_mask_writer(path, NAMES, RECORD) as writer:
        write_rows(writer, 0, 3)
    with h5py.File(path, "r+") as file:
        file["body"][1, 5, 5] ^= 255
        file["status"][4] = OK
    with open_mask_writer(path, NAMES, RECORD) as writer:
        assert writer.status.tolist() == [OK, PENDING, FAILED, PENDING, PENDING, PENDING]


def test_open_mask_writer__needs_the_same_images_and_settings(path: Path) -> None:
    for names, values, fact in (
        (NAMES[:-1], VALUES, "0 missing, 1 unexpected"),
        (NAMES, {**VALUES, "flip": False}, "flip"),
        (NAMES, {**VALUES, "rules_sha256": "cd" * 32}, "rules_sha256"),
    ):
        with pytest.raises(FormatError, match=fact):
            open_mask_writer(path, names, Provenance(values))


def test_open_mask_writer__label_maps_may_be_added_but_not_exchanged(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with open_mask_writer(path, NAMES, Provenance({**VALUES, "label_map:a": "a1", "label_map:c": "b2"})) as writer:
        write_rows(writer, 0, 3)
    for later in ({"label_map:a": "a1", "label_map:b": "c3", "label_map:c": "b2"}, {"label_map:c": "b2"}):
        open_mask_writer(path, NAMES, Provenance({**VALUES, **later})).close()
    with pytest.raises(FormatError, match="label_map:c"):
        open_mask_writer(path, NAMES, Provenance({**VALUES, "label_map:c": "d4"}))


# Damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_any_array_is_noticed(path: Path) -> None:
    whole_file = path.read_bytes()
    with h5py.File(path) as file:
        places = {key: (file[key].id.get_offset(), file[key].id.get_storage_size()) for key in file}
    assert places.pop("reason")
    assert set(places) == {*KEYS, "crc", "names"}
    rng = np.random.default_rng(1)
    for key, (offset, size) in places.items():
        for position in {0, size - 1, *rng.integers(0, size, 8).tolist()}:
            damaged = bytearray(whole_file)
            damaged[offset + position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(FormatError) as caught:
                MaskFile.open(path)
            assert any(word in caught.value.message for word in ("damaged", "incomplete")), key


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(path: Path) -> None:
    intact = MaskFile.open(path)
    content = path.read_bytes()
    rng = np.random.default_rng(2)
    refused = 0
    for position in rng.integers(0, len(content), 300).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read = MaskFile.open(path)
        except UserError:
            refused += 1
            continue
        # Unused space and links by name: the file says the same as before.
        assert read.provenance == intact.provenance
        assert read.names == intact.names
        for key in KEYS:
            np.testing.assert_array_equal(getattr(read, key), getattr(intact, key))
    assert refused > 200


def test_a_truncated_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            MaskFile.open(path)


@pytest.mark.parametrize("key", [*KEYS, "crc", "names"])
def test_a_missing_dataset_is_refused(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
    with pytest.raises(FormatError, match=f"lacks the dataset /{key}"):
        MaskFile.open(path)


def test_datasets_of_other_shapes_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["body"]
        file["body"] = np.zeros((6, 32, 16), np.uint8)
    with pytest.raises(FormatError, match=r"/body has shape \(6, 32, 16\)"):
        MaskFile.open(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(FormatError, match="format version 2") as caught:
        MaskFile.open(path)
    assert "newer" in (caught.value.hint or "")


def test_changed_and_missing_attributes_are_refused(path: Path) -> None:
    for name in ("part_names", "provenance", "attributes_sha256"):
        with h5py.File(path, "r+") as file:
            before = file.attrs.pop(name)
        with pytest.raises(FormatError, match="attributes do not match"):
            MaskFile.open(path)
        with h5py.File(path, "r+") as file:
            file.attrs[name] = before.replace(before[0], "x")
        with pytest.raises(FormatError, match="attributes do not match"):
            MaskFile.open(path)
        with h5py.File(path, "r+") as file:
            file.attrs[name] = before
    MaskFile.open(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not found"):
        MaskFile.open(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(FormatError, match="text file"):
        MaskFile.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["parts"] = np.zeros(3)
    with pytest.raises(FormatError, match="not a mask file"):
        MaskFile.open(tmp_path / "other.h5")


def test_names_must_be_storable(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="line break"):
        open_mask_writer(tmp_path / "masks.h5", ["a\nb.jpg"], RECORD)


def test_an_unwritable_place_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        open_mask_writer(tmp_path / "file" / "masks.h5", NAMES, RECORD)


@pytest.mark.parametrize("count", [1, 3, 400])
def test_what_is_reserved_is_enough_and_what_is_made_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    asked: list[int] = []

    def noted(path: Path, size: int) -> None:
        asked.append(size)
        reserve(path, size)

    monkeypatch.setattr(rows, "reserve", noted)
    path = tmp_path / "masks.h5"
    long = Provenance({"parser": "p" * 30_000})
    open_mask_writer(path, [f"{row:04d}{'x' * 200}.jpg" for row in range(count)], long).close()
    before, after = asked
    assert after == path.stat().st_size <= before
    if hasattr(os, "posix_fallocate"):
        assert path.stat().st_blocks * 512 >= after
    with h5py.File(path, "r") as file:
        assert not any(file[key][...].any() for key in (*KEYS, "crc"))


def test_an_empty_file_is_not_held_in_memory(tmp_path: Path) -> None:
    names = [f"{row:05d}.jpg" for row in range(8000)]
    tracemalloc.start()
    try:
        open_mask_writer(tmp_path / "masks.h5", names, RECORD).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "masks.h5").stat().st_size > 20e6
    assert peak < 4e6


def test_space_is_compared_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match="no space left") as caught:
        open_mask_writer(tmp_path / "masks.h5", NAMES, RECORD)
    assert "free some space" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [100, 3000, 50_000, 260_000])
def test_a_full_disk_is_told_in_words(tmp_path: Path, size: int) -> None:
    # A limit on the size of files, which HDF5 meets as it meets the end of a disk.
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from pipeline.errors import ArtifactError\n"
        "from pipeline.formats.masks import open_mask_writer\n"
        "from pipeline.formats.provenance import Provenance\n"
        "names = [f'{n:04d}.jpg' for n in range(100)]\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "try:\n    open_mask_writer(Path(sys.argv[1]), names, Provenance({}))\n"
        "except ArtifactError as error:\n    print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "masks.h5")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    assert done.stdout.startswith("the mask file cannot be written: "), done.stderr
    assert "errno" not in done.stdout
    assert "free some space" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "../a.jpg", "a/../../b.jpg", "C:/a.jpg", "..\\a.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "masks.h5"
    open_mask_writer(path, [name], RECORD).close()
    with pytest.raises(FormatError, match="names the image"):
        MaskFile.open(path, allow_incomplete=True)


def test_open__file_of_another_kind_is_named(tmp_path: Path) -> None:
    layout = rows.Layout(
        rows.RowFormat("sgsfa-features", 1, "features file"), 1, {}, {"names": rows.encode_texts(["a"])}
    )
    rows.open_or_create(tmp_path / "features.h5", layout, RECORD).close()
    with pytest.raises(FormatError, match="sgsfa-features"):
        MaskFile.open(tmp_path / "features.h5")
    (tmp_path / "page.h5").write_text("<html><title>Sign in</title></html>")
    with pytest.raises(FormatError, match="web page"):
        MaskFile.open(tmp_path / "page.h5")

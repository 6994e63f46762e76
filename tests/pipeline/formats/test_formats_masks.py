from __future__ import annotations

import dataclasses
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

from pipeline.errors import ArtifactError, FormatError, LockedError, UserError
from pipeline.formats import masks as maskfile
from pipeline.formats.masks import (
    DONE,
    FAILED,
    PENDING,
    MaskFile,
    MaskMeta,
    MaskWriter,
    has_rows,
    names_hash,
)
from pipeline.runtime.files import reserve

META = MaskMeta(
    parser="tiny",
    parser_version="3",
    weights_sha256="ab" * 32,
    label_set="pascal-7",
    grouping="spreid",
    groups_absent=("shoes",),
    resize="area",
    input_size=(256, 128),
    flip=True,
    hard=False,
    backend="torch",
    precision="float32",
    batch_size=4,
)
NAMES = sorted(["a/0001.jpg", "a/0002.jpg", "b/ÄÖ 人.jpg", "b/" + "x" * 200 + ".jpg", "b/y.jpg", "b/z.jpg"])

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def arrays(count: int = len(NAMES)) -> Arrays:
    rng = np.random.default_rng(5)
    parts = rng.integers(0, 256, (count, 4, 16, 8), dtype=np.uint8)
    body = rng.integers(0, 256, (count, 64, 32), dtype=np.uint8)
    quality = rng.random(count, dtype=np.float32)
    done = np.full(count, DONE, np.uint8)
    if count > 2:
        parts[2], body[2], quality[2], done[2] = 0, 0, 0, FAILED
    return parts, body, quality, done


def write_rows(writer: MaskWriter, start: int, stop: int) -> None:
    writer.write(start, *(array[start:stop] for array in arrays()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "masks.h5"
    with MaskWriter.create(path, NAMES, META) as writer:
        write_rows(writer, 0, 4)
        write_rows(writer, 4, 6)
        writer.finish()
    return path


def test_what_is_written_comes_back(path: Path) -> None:
    file = MaskFile.open(path, names=["b/y.jpg"])
    masks = file.load()
    for mine, expected in zip((masks.parts, masks.body, masks.quality, masks.done), arrays(), strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert masks.names == file.names == tuple(NAMES)
    assert masks.groups_absent == ("shoes",)
    assert file.meta == META
    assert file.complete
    assert [file.index(name) for name in NAMES] == list(range(6))
    assert ("b/y.jpg" in file, "y.jpg" in file, len(file), len(masks)) == (True, False, 6, 6)
    with pytest.raises(FormatError, match=r"no image 'y\.jpg'"):
        file.index("y.jpg")
    assert not list(path.parent.glob("*.new"))


def test_the_layout_is_the_documented_one(path: Path) -> None:
    # With h5py alone, as docs/formats/masks.md shows it.
    with h5py.File(path) as file:
        assert file["parts"].shape == (6, 4, 16, 8)
        assert file["body"].shape == (6, 64, 32)
        assert {key: file[key].dtype.str for key in ("parts", "body", "quality", "done", "crc")} == {
            "parts": "|u1", "body": "|u1", "quality": "<f4", "done": "|u1", "crc": "<u4"
        }  # fmt: skip
        for key in file:
            assert (file[key].chunks, file[key].compression) == (None, None)
        assert list(file["names"].asstr()[:]) == NAMES
        assert file.attrs["format"] == "sgsfa-masks"
        assert file.attrs["format_version"] == 2
        assert file.attrs["part_names"] == "head,upper,lower,shoes"
        assert file.attrs["groups_absent"] == "shoes"
        assert file.attrs["names_sha256"] == names_hash(NAMES)
        assert file.attrs["complete"] == 1
        row = 1
        crc = zlib.crc32(file["parts"][row].tobytes() + file["body"][row].tobytes())
        crc = zlib.crc32(file["quality"][row].tobytes() + file["done"][row].tobytes(), crc)
        assert file["crc"][row] == crc


def test_an_unfinished_file_is_refused_and_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with MaskWriter.create(path, NAMES, META) as writer:
        write_rows(writer, 0, 3)
        with pytest.raises(ValueError, match="still pending"):
            writer.finish()
    with pytest.raises(FormatError, match="incomplete: 3 of 6"):
        MaskFile.open(path)
    assert not MaskFile.open(path, allow_incomplete=True).complete
    elsewhere = dataclasses.replace(META, batch_size=64, backend="other", precision="bfloat16")
    with MaskWriter.resume(path, NAMES, elsewhere) as writer:
        assert writer.done.tolist() == [DONE, DONE, FAILED, PENDING, PENDING, PENDING]
        assert writer.meta.batch_size == 4
        write_rows(writer, 3, 6)
        writer.finish()
    np.testing.assert_array_equal(MaskFile.open(path).load().parts, arrays()[0])


def test_rows_that_were_not_finished_are_pending_again(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with MaskWriter.create(path, NAMES, META) as writer:
        write_rows(writer, 0, 3)
    with h5py.File(path, "r+") as file:
        file["body"][1, 5, 5] ^= 255
        file["done"][4] = DONE
    with MaskWriter.resume(path, NAMES) as writer:
        assert writer.done.tolist() == [DONE, PENDING, FAILED, PENDING, PENDING, PENDING]


def test_whether_there_are_rows_is_told_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    with MaskWriter.create(path, NAMES, META) as writer:
        assert not writer.done.any()
    assert not has_rows(path)
    with h5py.File(path, "r+") as file:
        del file["body"]
        file["done"][2] = FAILED
    assert has_rows(path)
    with h5py.File(path, "r+") as file:
        file.attrs["flip"] = np.uint8(0)
    with pytest.raises(FormatError, match="damaged"):
        has_rows(path)


def test_resuming_needs_the_same_images_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    MaskWriter.create(path, NAMES, META).close()
    with pytest.raises(FormatError, match="begun for other images"):
        MaskWriter.resume(path, NAMES[:-1], META)
    with pytest.raises(FormatError, match="begun with flip = True, not False"):
        MaskWriter.resume(path, NAMES, dataclasses.replace(META, flip=False))
    with pytest.raises(FormatError, match="another content of the label set 'pascal-7', the grouping 'spreid'"):
        MaskWriter.resume(path, NAMES, dataclasses.replace(META, rules_sha256="cd" * 32))


def test_label_maps_may_be_added_but_not_exchanged(tmp_path: Path) -> None:
    path, meta = tmp_path / "masks.h5", dataclasses.replace(META, label_maps=("a1", "", "b2"))
    MaskWriter.create(path, NAMES, meta).close()
    assert MaskFile.open(path, allow_incomplete=True).meta.label_maps == ("a1", "", "b2")
    for later in (("a1", "c3", "b2"), ("", "", "b2")):
        MaskWriter.resume(path, NAMES, dataclasses.replace(meta, label_maps=later)).close()
    with pytest.raises(FormatError, match="begun with other label maps"):
        MaskWriter.resume(path, NAMES, dataclasses.replace(meta, label_maps=("a1", "", "d4")))


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    MaskWriter.create(path, NAMES, META).close()
    hold = f"import h5py, time; file = h5py.File({str(path)!r}, 'r+'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(LockedError, match="another process"):
                MaskWriter.resume(path, NAMES, META)
        finally:
            other.kill()
    MaskWriter.resume(path, NAMES, META).close()


# Damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_any_array_is_noticed(path: Path) -> None:
    whole_file = path.read_bytes()
    with h5py.File(path) as file:
        places = {key: (file[key].id.get_offset(), file[key].id.get_storage_size()) for key in file}
    assert set(places) == {"parts", "body", "quality", "done", "crc", "names"}
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
        assert read.meta == intact.meta
        assert read.names == intact.names
        for key in ("parts", "body", "quality", "done"):
            np.testing.assert_array_equal(getattr(read.load(), key), getattr(intact.load(), key))
    assert refused > 200


def test_a_truncated_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            MaskFile.open(path)


@pytest.mark.parametrize("key", ["parts", "body", "quality", "done", "crc", "names"])
def test_a_missing_dataset_is_refused(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
    with pytest.raises(FormatError, match=f"lacks the dataset /{key}"):
        MaskFile.open(path)


def test_datasets_of_other_shapes_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["body"]
        file["body"] = np.zeros((6, 32, 16), np.uint8)
    with pytest.raises(FormatError, match=r"/whole has shape \(6, 32, 16\)"):
        MaskFile.open(path)


def test_a_newer_format_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(FormatError, match="format version 3, which is newer") as caught:
        MaskFile.open(path)
    assert caught.value.hint == "update sgsfa"


def test_changed_and_missing_attributes_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["label_set"] = "lip-20"
    with pytest.raises(FormatError, match="attributes do not match"):
        MaskFile.open(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["label_set"]
    with pytest.raises(FormatError, match="lacks the attributes label_set"):
        MaskFile.open(path)


def test_another_image_list_is_refused(path: Path) -> None:
    with pytest.raises(FormatError, match=r"made for other images: it lacks 1 of 2, first 'a/9999\.jpg'"):
        MaskFile.open(path, names=["a/0001.jpg", "a/9999.jpg"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        MaskFile.open(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(FormatError, match="no HDF5 file"):
        MaskFile.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["parts"] = np.zeros(3)
    with pytest.raises(FormatError, match="not a mask file"):
        MaskFile.open(tmp_path / "other.h5")


def test_names_must_be_storable(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="line break"):
        MaskWriter.create(tmp_path / "masks.h5", ["a\nb.jpg"], META)
    with pytest.raises(FormatError, match="not UTF-8"):
        MaskWriter.create(tmp_path / "masks.h5", ["a\udcffb.jpg"], META)
    with pytest.raises(ValueError, match="sorted"):
        MaskWriter.create(tmp_path / "masks.h5", ["b.jpg", "a.jpg"], META)


def test_an_unwritable_place_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        MaskWriter.create(tmp_path / "no" / "such" / "folder.h5", NAMES, META)


@pytest.mark.parametrize("count", [1, 3, 400])
def test_what_is_reserved_is_enough_and_what_is_made_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    asked: list[int] = []

    def noted(path: Path, size: int) -> None:
        asked.append(size)
        reserve(path, size)

    monkeypatch.setattr(maskfile, "reserve", noted)
    path = tmp_path / "masks.h5"
    long = dataclasses.replace(META, parser="p" * 30_000)
    MaskWriter.create(path, [f"{row:04d}{'x' * 200}.jpg" for row in range(count)], long).close()
    before, after = asked
    assert after == path.stat().st_size <= before
    if hasattr(os, "posix_fallocate"):
        assert path.stat().st_blocks * 512 >= after
    with h5py.File(path, "r") as file:
        assert not any(file[key][...].any() for key in ("parts", "body", "quality", "done", "crc"))


def test_an_empty_file_is_not_held_in_memory(tmp_path: Path) -> None:
    names = [f"{row:05d}.jpg" for row in range(8000)]
    tracemalloc.start()
    try:
        MaskWriter.create(tmp_path / "masks.h5", names, META).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "masks.h5").stat().st_size > 20e6
    assert peak < 4e6


def test_space_is_compared_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match="no space left") as caught:
        MaskWriter.create(tmp_path / "masks.h5", NAMES, META)
    assert "make room" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [100, 3000, 50_000, 260_000])
def test_a_full_disk_is_told_in_words(tmp_path: Path, size: int) -> None:
    # A limit on the size of files, which HDF5 meets as it meets the end of a disk.
    program = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from pipeline.errors import ArtifactError\n"
        "from test_datasets_maskfile import META, MaskWriter, arrays\n"
        "names = [f'{n:04d}.jpg' for n in range(100)]\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "try:\n    MaskWriter.create(Path(sys.argv[1]), names, META)\n"
        "except ArtifactError as error:\n    print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "masks.h5"), str(Path(__file__).parent)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    assert done.stdout.startswith("the mask file cannot be written: "), done.stderr
    assert "errno" not in done.stdout
    assert "make room" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "../a.jpg", "a/../../b.jpg", "C:/a.jpg", "..\\a.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "masks.h5"
    MaskWriter.create(path, [name], META).close()
    with pytest.raises(FormatError, match="names the image"):
        MaskFile.open(path, allow_incomplete=True)

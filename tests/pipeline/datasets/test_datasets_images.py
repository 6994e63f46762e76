import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets import images
from pipeline.datasets.images import decode_batches, decode_image, read_image, read_resized, resize, write_image
from pipeline.errors import ImageError

# The module silences Pillow; pytest's own filters undo that.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

RED = (200, 30, 40)


def picture(height: int = 64, width: int = 32) -> np.ndarray:
    """Smooth colours, so that JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * y, 7 * x, 128 + 0 * x], axis=2).clip(0, 255).astype(np.uint8)


def noise() -> np.ndarray:
    """What does not compress."""
    return np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(Image.fromarray(picture()), "JPEG", quality=90, **options)


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG; OpenCV writes it, as Pillow has no 16-bit RGB."""
    done, data = cv2.imencode(".png", values)
    assert done
    return data.tobytes()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (32, 64), (shade, 0, 0)) for shade in (0, 90, 180)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "0 bytes"),
    "zeros": (lambda: bytes(4096), "4096 zero bytes"),
    "text": (lambda: b"these are not the pixels you are looking for\n" * 20, "a text file"),
    "a photo of a phone": (lambda: b"\0\0\0\x18ftypheic" + bytes(400), "brand 'heic' (HEIC, AVIF or a video)"),
    "web page": (lambda: b"<!DOCTYPE html><title>404</title>", "not an image: a web page"),
    "noise": (lambda: bytes(range(128, 256)) * 9, "unknown format"),
    "half a JPEG": (lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
    "a JPEG without its last bytes": (lambda: jpeg()[:-20], "truncated"),
    "a JPEG with a tail of zeros": (lambda: jpeg()[:-300] + bytes(300), "truncated"),
    "a JPEG header": (lambda: jpeg()[:100], "truncated"),
    "half a PNG": (lambda: encoded(Image.fromarray(picture()), "PNG", compress_level=0)[:3000], "truncated"),
    "a JPEG without its end mark": (lambda: jpeg()[:-2], "truncated"),
    "half a BMP": (lambda: encoded(Image.fromarray(picture()), "BMP")[:900], "truncated"),
    "half a TIFF": (lambda: encoded(Image.fromarray(picture()), "TIFF")[:900], ""),
    "half a WebP": (lambda: encoded(Image.fromarray(noise()), "WEBP", lossless=True)[:3000], ""),
    "1x1": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), "implausible size: 1x1"),
    "20,000x10": (lambda: encoded(Image.new("RGB", (20_000, 10)), "PNG"), "implausible size: 20000x10"),
    "10x20,000": (lambda: encoded(Image.new("RGB", (10, 20_000)), "JPEG"), "implausible size: 10x20000"),
    "a long side": (lambda: encoded(Image.new("RGB", (13_000, 1_000)), "PNG"), "implausible size: 13000x1000"),
    "bomb": (bomb, "implausible size"),
    "large": (lambda: encoded(Image.new("1", (9_000, 9_000)), "PNG"), "implausible size: 9000x9000"),
    "GIF": (lambda: animation("GIF"), "animation of 3 frames"),
    "WebP": (lambda: animation("WEBP"), "animation of 3 frames"),
    "PNG": (lambda: animation("PNG"), "animation of 3 frames"),
    "float TIFF": (lambda: encoded(Image.fromarray(np.zeros((64, 32), np.float32)), "TIFF"), "32 bits"),
    "PostScript": (lambda: encoded(Image.fromarray(picture()), "EPS"), "not an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_by_name(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = REFUSED[name]
    path = tmp_path / "0001_c1s1_000001_00.jpg"
    path.write_bytes(make())
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert caught.value.where == str(path)
    assert reason in str(caught.value)
    # The decoders below must not write over the progress bars.
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path / "folder.jpg")


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="too long"):
        read_image(tmp_path / ("x" * 300 + ".jpg"))


@pytest.mark.parametrize(
    "name", ["行人_0001.jpg", "Fußgänger – å.jpg", "x" * 250 + ".jpg", "a b'c\"d.jpg", "no_suffix"]
)
def test_unusual_names_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(jpeg())
    assert np.abs(read_image(path).astype(int) - picture()).mean() < 3


def test_lossless_formats_give_the_exact_pixels(tmp_path: Path) -> None:
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        path = tmp_path / f"image.{form.lower()}"
        path.write_bytes(encoded(Image.fromarray(picture()), form))
        found = read_image(path)
        assert found.dtype == np.uint8
        assert found.flags.writeable
        np.testing.assert_array_equal(found, picture())


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_colour_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    plain = Image.new("RGB", (32, 64), (255, 255, 255))
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    path = tmp_path / "image"
    path.write_bytes(encoded(plain.convert(mode), form))
    np.testing.assert_array_equal(read_image(path), np.full((64, 32, 3), 255, np.uint8))


def test_grey_and_cmyk_jpegs(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(Image.new("L", (32, 64), 77), "JPEG"))
    np.testing.assert_array_equal(read_image(path), np.full((64, 32, 3), 77, np.uint8))
    path.write_bytes(encoded(Image.new("RGB", (32, 64), RED).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(read_image(path).astype(int) - RED).max() <= 4


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    layered = np.zeros((64, 32, 4), np.uint8)
    layered[..., :3] = RED
    layered[:32, :, 3] = 255
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(layered), "PNG"))
    found = read_image(path)
    assert (found[:32] == RED).all()
    assert (found[32:] == 255).all()


def test_a_transparent_palette_colour_lies_on_white(tmp_path: Path) -> None:
    indexed = Image.new("P", (32, 64), 1)
    indexed.putpalette([0, 0, 0, *RED])
    path = tmp_path / "image.png"
    path.write_bytes(encoded(indexed, "PNG", transparency=b"\xff\x00"))
    assert (read_image(path) == 255).all()


def test_sixteen_bits_are_reduced_to_the_upper_eight(tmp_path: Path) -> None:
    values = (np.arange(64 * 32).reshape(64, 32) * 31).astype(np.uint16)
    path = tmp_path / "image.png"
    path.write_bytes(png16(values))
    np.testing.assert_array_equal(read_image(path), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    colours = np.stack([values, values // 2, values // 3], axis=2)
    path.write_bytes(png16(colours[..., ::-1]))
    np.testing.assert_array_equal(read_image(path), (colours >> 8).astype(np.uint8))
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 32 64 65535\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(path), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(picture())
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    # Stored lying so that the orientation's own turn sets it upright again.
    stored = upright.transpose(methods[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "JPEG", "TIFF"):
        path = tmp_path / f"image.{form}"
        path.write_bytes(encoded(stored, form, exif=exif.tobytes()))
        found = read_image(path)
        assert found.shape == picture().shape
        assert np.abs(found.astype(int) - picture()).mean() < 3


def test_damaged_metadata_do_not_matter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xee" * 40))
    assert read_image(path).shape == (64, 32, 3)
    assert capfd.readouterr().err == ""


def test_damage_inside_a_jpeg_is_silent_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(jpeg())
    middle = len(data) - 200
    data[middle : middle + 20] = bytes(range(20))
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (64, 32, 3)
    assert capfd.readouterr() == ("", "")


VALID = {
    "JPEG": jpeg,
    "progressive JPEG": lambda: jpeg(progressive=True),
    "PNG": lambda: encoded(Image.fromarray(picture()), "PNG"),
    "palette PNG": lambda: encoded(Image.fromarray(picture()).convert("P"), "PNG", transparency=3),
    "TIFF": lambda: encoded(Image.fromarray(picture()), "TIFF"),
    "BMP": lambda: encoded(Image.fromarray(picture()), "BMP"),
    "WebP": lambda: encoded(Image.fromarray(picture()), "WEBP"),
    "GIF": lambda: encoded(Image.fromarray(picture()).convert("P"), "GIF"),
    "PPM": lambda: encoded(Image.fromarray(picture()), "PPM"),
}


@pytest.mark.parametrize("form", VALID)
@given(data=st.data())
def test_damage_of_any_kind_ends_in_an_image_or_an_image_error(form: str, data: st.DataObject) -> None:
    content = bytearray(VALID[form]())
    for _ in range(data.draw(st.integers(1, 8))):
        # Headers are short and matter most.
        position = data.draw(st.one_of(st.integers(0, min(200, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    try:
        image = decode_image(bytes(content), Path("image"))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


def test_progressive_jpegs_and_trailing_bytes_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(progressive=True) + b"trailer")
    assert np.abs(read_image(path).astype(int) - picture()).mean() < 3


def test_the_first_page_of_a_tiff_is_taken(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (32, 64), colour) for colour in (RED, (0, 0, 0))]
    path = tmp_path / "image.tif"
    path.write_bytes(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (read_image(path) == RED).all()


def test_resize_averages_when_shrinking_and_interpolates_when_growing() -> None:
    image = picture(64, 32)
    np.testing.assert_array_equal(resize(image, 32, 16), image.reshape(32, 2, 16, 2, 3).mean((1, 3)).round())
    np.testing.assert_array_equal(resize(image, 128, 64), cv2.resize(image, (64, 128), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_array_equal(resize(image, 128, 16), cv2.resize(image, (16, 128), interpolation=cv2.INTER_LINEAR))
    assert resize(image, 64, 32) is image


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(53):
        path = tmp_path / f"{number:03}.png"
        path.write_bytes(encoded(Image.new("RGB", (32, 64), (number, 0, 0)), "PNG"))
        paths.append(path)
    return paths


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (8, 2), (16, 4), (53, 1), (100, 3)])
def test_batches_hold_every_image_once_and_in_order(folder: list[Path], batch: int, threads: int) -> None:
    seen: list[int] = []
    for decoded in decode_batches(folder, 64, 32, batch=batch, threads=threads):
        found, positions = decoded.readable_images()
        assert found is decoded.images
        assert found.shape == (len(positions), 64, 32, 3)
        assert not decoded.failed
        np.testing.assert_array_equal(found[:, 0, 0, 0], positions)
        seen += positions
    assert seen == list(range(53))


def test_batches_list_what_failed(folder: list[Path]) -> None:
    for number in (0, 9, 10, 52):
        folder[number].write_bytes(b"text")
    batches = list(decode_batches(folder, 20, 10, batch=10, threads=2))
    failed = {b.start + row: reason for b in batches for row, reason in b.failed.items()}
    assert failed == dict.fromkeys((0, 9, 10, 52), "not an image: a text file")
    for b in batches:
        found, positions = b.readable_images()
        assert positions == [i for i in range(b.start, b.start + len(b.images)) if i not in failed]
        np.testing.assert_array_equal(found[:, 0, 0, 0], positions)
        assert not b.images[~b.readable].any()


def test_a_batch_may_fail_as_a_whole(tmp_path: Path) -> None:
    (batch,) = decode_batches([tmp_path / "a.jpg", tmp_path / "b.jpg"], 8, 4, batch=4, threads=1)
    assert batch.images.shape == (2, 8, 4, 3)
    assert len(batch.failed) == 2
    assert batch.readable_images()[1] == []


def test_batches_on_a_square_keep_proportions(folder: list[Path]) -> None:
    folder[3].write_bytes(b"text")
    (batch,) = decode_batches(folder[:6], 32, 32, batch=6, threads=1, fit="square")
    assert batch.areas[batch.readable].tolist() == [[0, 0.25, 1, 0.75]] * 5
    found, positions = batch.readable_images()
    np.testing.assert_array_equal(found[:, 16, 16, 0], positions)
    assert not batch.images[:, :, :8].any()
    assert not batch.images[:, :, 24:].any()


@given(st.integers(8, 400), st.integers(8, 400), st.sampled_from([(256, 128), (128, 64), (64, 64)]))
def test_padded_area__keeps_the_scale_of_a_whole_person(height: int, width: int, size: tuple[int, int]) -> None:
    top, left, bottom, right = images.padded_area(height, width, *size)
    assert top == 0
    assert abs(left - (1 - right)) <= 1 / size[1]
    ratio = height / width / images.PERSON_RATIO
    if 1.6 <= height / width <= 3:
        assert (bottom, left, right) == (1, 0, 1)
    else:
        assert bottom == pytest.approx(min(ratio, 1), abs=0.6 / size[0])
        assert right - left == pytest.approx(min(1 / ratio, 1), abs=0.6 / size[1])


@pytest.mark.parametrize(
    ("shape", "filled"),
    [
        ((8, 160), (2, 32)),  # the most extreme ratios that are read
        ((160, 8), (64, 3)),
        ((80, 50), (64, 32)),  # exactly 1.6 and 3
        ((150, 50), (64, 32)),
        ((63, 63), (32, 32)),
        ((96, 31), (64, 21)),
    ],
)
def test_fitted__pads_to_the_frame(shape: tuple[int, int], filled: tuple[int, int]) -> None:
    frame, area = images.fitted(np.full((*shape, 3), 7, np.uint8), 64, 32, "pad")
    assert frame.shape == (64, 32, 3)
    own = (frame == 7).all(2)
    assert (own.any(1).sum(), own.any(0).sum()) == filled
    assert own.sum() == filled[0] * filled[1]
    assert (frame[~own] == images.PADDING).all()
    assert area == images.padded_area(*shape, 64, 32)


def test_batches_with_padding_keep_proportions(tmp_path: Path) -> None:
    shapes = {"whole": (80, 40), "waist": (40, 40), "side": (100, 25)}
    for name, shape in shapes.items():
        write_image(tmp_path / f"{name}.png", np.full((*shape, 3), 200, np.uint8))
    (batch,) = decode_batches([tmp_path / f"{name}.png" for name in shapes], 64, 32, batch=3, threads=1, fit="pad")
    assert batch.areas.tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0.25, 1, 0.75]]
    assert (batch.images[0] == 200).all()
    assert (batch.images[1, :32] == 200).all()
    assert (batch.images[1, 32:] == images.PADDING).all()
    assert (batch.images[2, :, 8:24] == 200).all()
    assert (batch.images[2, :, :8] == images.PADDING).all()
    assert (batch.images[2, :, 24:] == images.PADDING).all()


def test_batches_do_not_run_ahead(folder: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = set()
    read = images.read_image

    def counting(path: Path) -> np.ndarray:
        begun.add(path)
        return read(path)

    monkeypatch.setattr(images, "read_image", counting)
    batches = decode_batches(folder, 64, 32, batch=4, threads=2)
    next(batches)
    assert 4 <= len(begun) <= 12
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode") and thread.is_alive()]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_written_images_are_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"image{suffix}"
    write_image(path, picture())
    assert np.abs(read_image(path).astype(int) - picture()).mean() < (0.1 if suffix == ".png" else 4)
    assert list(path.parent.iterdir()) == [path]


def test_writing_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="xyz"):
        write_image(tmp_path / "image.xyz", picture())
    assert not list(tmp_path.iterdir())


def test_read_resized_reads_the_wanted_size(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_image(path, picture())
    assert read_resized(path, 256, 128).shape == (256, 128, 3)

"""Photographs of whole people made into what a pedestrian detector cuts out of a surveillance video.

Everything happens at the network's input size, 256 x 128: the box is cut out, people are put behind and things in
front, then the crop is made as small, blurred and compressed as such crops are and brought back to that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tools.parser import cutouts, occluders, shaders, shapes, textures
from tools.parser.clothing import (
    BAG,
    COAT,
    DRESS,
    FLIPPED,
    IN_FRONT,
    JUMPSUIT,
    PANTS,
    SKIRT,
    UPPER,
    Photograph,
    is_person,
)
from tools.parser.occluders import Occluder

HEIGHT, WIDTH = 256, 128


@dataclass(frozen=True, slots=True)
class CropRules:
    """How often what happens to a training crop; all are probabilities.

    Attributes:
        loose: The box is wider than the person; otherwise it is tight or cuts a little off.
        truncated: Feet, legs, a side or the head lie outside the box.
        occluded: Something stands in front.
        crowd: Another person stands in front or behind.
        backdrop: The background is another photograph's or a texture.
        redressed: One garment is covered with a texture, so that patterns alone do not tell clothes from things. Too
            often, and whatever is pasted within a body's outline passes for a garment.
        pictured: What stands in front is one of the pictures of `cutouts`, where there are any.
        aslant: A texture is drawn out along one direction, as on a surface that is seen at a low angle.
        disguised: What stands in front has the colours of skin, hair or a garment, so that colours alone do not tell
            people from things.
        unnamed: Things and textures are drawn from the families of `shapes` and `shaders`; otherwise from the lists.
        degraded: The crop is made small, blurred, noisy or compressed.
        shrunk: The photograph is taken at exactly 128 x 64 and otherwise left alone, as in the measurement.
    """

    loose: float = 0.35
    truncated: float = 0.25
    occluded: float = 0.45
    crowd: float = 0.2
    backdrop: float = 0.12
    redressed: float = 0.15
    pictured: float = 0.0
    aslant: float = 0.0
    disguised: float = 0.0
    unnamed: float = 0.55
    degraded: float = 0.7
    shrunk: float = 0.25


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop with its labels.

    Attributes:
        image: (256, 128, 3) uint8, RGB.
        labels: (256, 128) uint8, LIP labels, `BAG` and `IN_FRONT`.
        hidden: (256, 128) bool, where something in front hides the person; None: neither that nor the kinds of
            background are known, and 0 stands for all of them.
    """

    image: np.ndarray
    labels: np.ndarray
    hidden: np.ndarray | None = None


def random_crop(
    rng: np.random.Generator,
    photographs: Sequence[Photograph],
    index: int,
    rules: CropRules,
    things: Sequence[np.ndarray] = (),
) -> Crop:
    """Return a training crop of one photograph; the others lend people, backgrounds and textures.

    Args:
        rng: Random numbers.
        photographs: All that may lend something.
        index: Of the one whose person is wanted.
        rules: How often what happens.
        things: Pictures as `cutouts.read_cutouts` gives them.
    """
    photograph = photographs[index]
    crop = cut(photograph, random_box(rng, photograph.box, rules), angle=float(rng.normal(0, 2.5)))
    if rng.random() < 0.5:
        crop = mirrored(crop)
    if rng.random() < rules.backdrop:
        crop = on_backdrop(rng, crop, photographs, rules.unnamed)
    if rng.random() < rules.redressed:
        crop = redressed(rng, crop, rules.unnamed)
    person = is_person(crop.labels)
    if rng.random() < rules.crowd:
        other = photographs[int(rng.integers(len(photographs)))]
        crop = beside(rng, crop, other)
    if rng.random() < rules.occluded:
        for _ in range(int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))):
            occluder = random_occluder(rng, photographs, rules, things)
            if rng.random() < rules.disguised:
                model = photographs[int(rng.integers(len(photographs)))]
                occluder = disguised(rng, occluder, crop if rng.random() < 0.4 else cut(model, model.box))
            covered = behind(crop, lit(rng, occluder))
            if is_person(covered.labels).sum() >= 0.2 * max(1, is_person(crop.labels).sum()):
                crop = covered
    return Crop(random_look(rng, crop.image, rules), crop.labels, person & ~is_person(crop.labels))


def random_box(
    rng: np.random.Generator, box: tuple[int, int, int, int], rules: CropRules
) -> tuple[float, float, float, float]:
    """Return a detector's box around a person: left, top, right, bottom in pixels of the photograph."""
    left, top, right, bottom = (float(value) for value in box)
    width, height = right - left, bottom - top
    jitter = rng.normal(0, 0.025, 4)
    left, right = left + jitter[0] * width, right + jitter[1] * width
    top, bottom = top + jitter[2] * height * 0.6, bottom + jitter[3] * height * 0.6
    if rng.random() < rules.loose:
        grow = rng.uniform(0, 0.35, 2) * width
        left, right = left - grow[0], right + grow[1]
        grow = rng.uniform(0, 0.15, 2) * height
        top, bottom = top - grow[0], bottom + grow[1]
    if rng.random() < rules.truncated:
        kind = rng.choice(5, p=[0.45, 0.15, 0.1, 0.15, 0.15])
        if kind == 0:
            bottom -= rng.uniform(0.02, 0.6) * height
        elif kind == 1:
            top += rng.uniform(0.02, 0.25) * height
        elif kind == 2:
            top += rng.uniform(0.25, 0.5) * height
        elif kind == 3:
            left += rng.uniform(0.1, 0.4) * width
        else:
            right -= rng.uniform(0.1, 0.4) * width
    if rng.random() < 0.5:
        # Boxes of one shape: a person seen from the side or cut at the waist is not stretched to fill them.
        missing = (bottom - top) * rng.uniform(0.36, 0.5) - (right - left)
        if missing > 0:
            shift = rng.uniform(0.35, 0.65)
            left, right = left - missing * shift, right + missing * (1 - shift)
    return left, top, right, bottom


def cut(photograph: Photograph, box: tuple[float, float, float, float], *, angle: float = 0.0) -> Crop:
    """Cut a box out, turned by `angle` degrees, at 256 x 128; what lies outside repeats the edge, without labels."""
    left, top, right, bottom = box
    turn = np.deg2rad(angle)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    across = np.array([np.cos(turn), np.sin(turn)]) * (right - left) / WIDTH
    down = np.array([-np.sin(turn), np.cos(turn)]) * (bottom - top) / HEIGHT
    origin = centre - across * (WIDTH - 1) / 2 - down * (HEIGHT - 1) / 2 - 0.5
    matrix = np.stack([across, down, origin], 1)
    flags = cv2.WARP_INVERSE_MAP
    image = cv2.warpAffine(
        photograph.image, matrix, (WIDTH, HEIGHT), flags=flags | cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    labels = cv2.warpAffine(photograph.labels, matrix, (WIDTH, HEIGHT), flags=flags | cv2.INTER_NEAREST)
    return Crop(image, labels)


def mirrored(crop: Crop) -> Crop:
    """Return the mirror image, left and right labels exchanged."""
    return Crop(np.ascontiguousarray(crop.image[:, ::-1]), FLIPPED[crop.labels[:, ::-1]])


def behind(crop: Crop, occluder: Occluder, label: int = IN_FRONT) -> Crop:
    """Return the crop with something in front; where that is mostly opaque, it has the label given."""
    alpha = occluder.opacity[..., None]
    image = (crop.image * (1 - alpha) + occluder.picture * alpha).astype(np.uint8)
    return Crop(image, np.where(occluder.opacity >= 0.5, label, crop.labels).astype(np.uint8))


def lit(rng: np.random.Generator, occluder: Occluder) -> Occluder:
    """Return the occluder with light and shade over it and an edge as sharp as the lens makes it."""
    height, width = occluder.opacity.shape
    light = (0.6 + 0.8 * textures.noise(rng, height, width, 60)) * rng.uniform(0.6, 1.2)
    picture = (occluder.picture * light[..., None]).clip(0, 255).astype(np.uint8)
    return Occluder(cv2.GaussianBlur(occluder.opacity, (0, 0), rng.uniform(0.3, 1.2)), picture)


def random_occluder(
    rng: np.random.Generator, photographs: Sequence[Photograph], rules: CropRules, things: Sequence[np.ndarray] = ()
) -> Occluder:
    """Return a thing of a picture, with a name or without, covered with anything, sometimes drawn out of shape."""
    if things and rng.random() < rules.pictured:
        kind = cutouts.pasted(things)
    else:
        kinds = shapes.TRAINING if rng.random() < rules.unnamed else occluders.TRAINING
        kind = kinds[int(rng.integers(len(kinds)))]
    occluder = kind(rng, HEIGHT, WIDTH, _paint(rng, photographs, rules))
    return shapes.bent(rng, occluder) if rng.random() < 0.3 else occluder


_LEAST = 0.004
"""Share of a crop that a label must take to lend its colours."""


def disguised(rng: np.random.Generator, occluder: Occluder, model: Crop) -> Occluder:
    """Return the thing in the colours of something that a person shows: skin, hair or a garment.

    Skin and hair have few colours. A network that has seen no thing in them takes brown for skin, whatever its texture.
    """
    shown = [label for label in range(1, BAG) if (model.labels == label).mean() > _LEAST]
    seen = occluder.opacity >= 0.5
    if not shown or not seen.any():
        return occluder
    lent = model.image[model.labels == shown[int(rng.integers(len(shown)))]].astype(np.float32)
    colour = lent.mean(0) * rng.normal(1, 0.06, 3) * rng.uniform(0.8, 1.25)
    values = occluder.picture.astype(np.float32)
    if rng.random() < 0.5:
        # Light and dark of one colour, as far apart as the thing's own.
        light = values.mean(2)
        light = (light - light[seen].mean()) / max(128.0, 2.5 * float(light[seen].std()))
        values = colour * (1 + rng.uniform(0.5, 1.2) * light)[..., None]
    else:
        spread = np.maximum(lent.std(0), 5) * rng.uniform(0.5, 2)
        values = colour + (values - values[seen].mean(0)) / np.maximum(values[seen].std(0), 8) * spread
    return Occluder(occluder.opacity, values.clip(0, 255).astype(np.uint8))


def random_texture(rng: np.random.Generator, height: int, width: int, unnamed: float) -> np.ndarray:
    """Return a texture with a name or one without: (height, width, 3) uint8."""
    kinds: Sequence[textures.Texture] = shaders.TRAINING if rng.random() < unnamed else textures.TRAINING
    return kinds[int(rng.integers(len(kinds)))](rng, height, width)


def drawn_out(rng: np.random.Generator, texture: np.ndarray) -> np.ndarray:
    """Return a texture turned, and stretched along one direction, upright or level half of the time.

    Surfaces are seldom seen from straight before them. What is even on a surface is then drawn out, and even noise
    becomes a grain.
    """
    height, width = texture.shape[:2]
    direction = rng.integers(2) * np.pi / 2 if rng.random() < 0.5 else rng.uniform(0, np.pi)
    stretch, squeeze = np.exp(rng.uniform(0, np.log(7))), np.exp(rng.uniform(0, np.log(2)))
    inverse = shapes.rotation(rng.uniform(0, 2 * np.pi)) @ np.diag([1 / stretch, squeeze]) @ shapes.rotation(-direction)
    middle = np.array([width, height]) / 2
    matrix = np.column_stack([inverse, middle - inverse @ middle])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(texture, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT))


def on_backdrop(rng: np.random.Generator, crop: Crop, photographs: Sequence[Photograph], unnamed: float) -> Crop:
    """Return the person before another background."""
    if rng.random() < 0.7:
        picture = background_piece(rng, photographs, HEIGHT, WIDTH)
    else:
        picture = random_texture(rng, HEIGHT, WIDTH, unnamed)
    person = cv2.GaussianBlur((crop.labels > 0).astype(np.float32), (0, 0), 0.8)[..., None]
    return Crop((crop.image * person + picture * (1 - person)).astype(np.uint8), crop.labels)


_GARMENTS = (UPPER, DRESS, COAT, PANTS, JUMPSUIT, SKIRT)


def redressed(rng: np.random.Generator, crop: Crop, unnamed: float) -> Crop:
    """Return one garment in another cloth, its folds kept; the labels stay."""
    worn = [label for label in _GARMENTS if (crop.labels == label).mean() > 0.02]
    if not worn:
        return crop
    garment = crop.labels == worn[int(rng.integers(len(worn)))]
    cloth = random_texture(rng, HEIGHT, WIDTH, unnamed)
    light = crop.image.mean(2)
    folds = (light / max(20.0, float(light[garment].mean()))).clip(0.3, 1.7)
    share = cv2.GaussianBlur(garment.astype(np.float32), (0, 0), 0.7)[..., None] * rng.uniform(0.6, 1.0)
    image = crop.image * (1 - share) + cloth * folds[..., None] * share
    return Crop(image.clip(0, 255).astype(np.uint8), crop.labels)


def beside(rng: np.random.Generator, crop: Crop, other: Photograph) -> Crop:
    """Return the crop with another person, who is background: behind, or in front and to one side."""
    left, top, right, bottom = other.box
    width, height = (right - left) / rng.uniform(0.45, 1.3), (bottom - top) / rng.uniform(0.7, 1.4)
    in_front = rng.random() < 0.5
    offset = rng.choice([-1.0, 1.0]) * (rng.uniform(0.35, 0.65) if in_front else rng.uniform(0.2, 0.6))
    x = (left + right) / 2 - offset * width
    y = (top + bottom) / 2 - rng.uniform(-0.05, 0.35 if in_front else 0.1) * height
    pasted = cut(other, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    shape = is_person(pasted.labels)
    if not in_front:
        shape = shape & (crop.labels == 0)
    elif (shape & is_person(crop.labels)).sum() > 0.65 * max(1, is_person(crop.labels).sum()):
        return crop
    occluder = Occluder(cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.7), pasted.image)
    return behind(crop, occluder, IN_FRONT if in_front else 0)


def background_piece(
    rng: np.random.Generator, photographs: Sequence[Photograph], height: int, width: int
) -> np.ndarray:
    """Return a piece of a photograph beside its person: (height, width, 3) uint8."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    left, _, right, _ = photograph.box
    total = photograph.image.shape[1]
    strip = photograph.image[:, :left] if left > total - right else photograph.image[:, right:]
    if strip.shape[1] < 24:
        strip = photograph.image[: max(24, photograph.box[1])]
    return textures.from_pictures([strip], rng, height, width)


def random_look(rng: np.random.Generator, image: np.ndarray, rules: CropRules) -> np.ndarray:
    """Return light, colour, size, blur, noise and compression of a surveillance camera; (256, 128, 3) uint8."""
    draw = rng.random()
    if draw < rules.shrunk:
        return _resized(_resized(image, 128, 64), HEIGHT, WIDTH)
    image = _recoloured(rng, image)
    if draw > rules.shrunk + rules.degraded * (1 - rules.shrunk):
        return image
    height = int(rng.choice([128, 128, 128, 96, 160, 64, 48])) if rng.random() < 0.8 else int(rng.integers(40, 256))
    if rng.random() < 0.3:
        image = _blurred(rng, image)
    small = _resized(image, height, max(20, int(height * rng.uniform(0.4, 0.6))))
    if rng.random() < 0.4:
        grain = rng.normal(0, rng.uniform(2, 12), small.shape)
        small = (small + grain).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(rng.integers(25, 96))
        _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        small = np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1])
    if height < 128 and rng.random() < 0.7:
        # Data sets store crops at one size whatever the person's size was.
        small = _resized(small, 128, 64)
    return _resized(small, HEIGHT, WIDTH)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _recoloured(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    values = image.astype(np.float32)
    grey = values.mean(2, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0.3, 1.4)
    values *= rng.uniform(0.55, 1.3) * rng.normal(1, 0.07, 3).clip(0.8, 1.2).astype(np.float32)
    middle = float(values.mean())
    values = middle + (values - middle) * rng.uniform(0.6, 1.3) + rng.uniform(-15, 25)
    if rng.random() < 0.25:
        values *= (0.5 + textures.noise(rng, image.shape[0], image.shape[1], 70))[..., None]
    values = 255 * (values.clip(0, 255) / 255) ** rng.uniform(0.7, 1.4)
    return values.astype(np.uint8)


def _blurred(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 2.0))
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    end = rng.uniform(0, length - 1, 2)
    cv2.line(kernel, (length // 2, length // 2), (int(end[0]), int(end[1])), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


def _paint(rng: np.random.Generator, photographs: Sequence[Photograph], rules: CropRules) -> occluders.Paint:
    def paint(height: int, width: int) -> np.ndarray:
        if rng.random() < 0.4:
            return background_piece(rng, photographs, height, width)
        texture = random_texture(rng, height, width, rules.unnamed)
        return drawn_out(rng, texture) if rng.random() < rules.aslant else texture

    return paint


def random_rendered(rng: np.random.Generator, crop: Crop, rules: CropRules) -> Crop:
    """Return a training crop of a rendered image, which has its box, its occluders and its neighbours already."""
    if rng.random() < 0.5:
        crop = mirrored(crop)
    if rng.random() < 0.5:
        height, width = crop.labels.shape
        left, top = rng.uniform(0, 0.12) * width, rng.uniform(0, 0.12) * height
        box = (left, top, width - rng.uniform(0, 0.12) * width, height - rng.uniform(0, 0.12) * height)
        crop = cut(Photograph("", crop.image, crop.labels, (0, 0, width, height)), box)
    return Crop(random_look(rng, crop.image, rules), crop.labels)

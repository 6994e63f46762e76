"""Cut-out images of objects to paste in front of people: shapes and shading that no list here defines.

A folder of them comes from Microsoft's Fluent Emoji (3D style, MIT licence), some 3,400 pictures of 256 x 256 with
transparency, named by code point: `npm pack @lobehub/fluent-emoji-3d@1.1.0`, unpacked, has it as `package/assets`.
`read_cutouts` takes the things among them: no people, no parts of them, no clothes, no symbols, and nothing like the
kinds that `occluders` keeps for the test.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tools.parser.occluders import Kind, Occluder, Paint
from tools.parser.shapes import rotation, whereabouts

_SIDE = 160

_BLOCKS = (range(0x1F300, 0x1F600), range(0x1F680, 0x1F700), range(0x1F900, 0x1FB00))
"""Things; between them lie faces and gestures, below them letters and signs."""

_PEOPLE = """
MAN MEN WOMAN WOMEN WOMANS MANS PERSON PEOPLE BOY GIRL BABY FAMILY COUPLE KISS ADULT CHILD CHILDREN BUST BUSTS HAND
HANDS FINGER FINGERS FIST INDEX ARM LEG FOOT FOOTPRINTS EAR EARS NOSE MOUTH TONGUE EYE EYES LUNGS HEART BICEPS LIP
TOOTH FACE FACES HEAD SELFIE SHRUG PALM PALMS WAVING PRINCE PRINCESS BRIDE CHRISTMAS ANGEL DANCER GUARDSMAN OFFICER
SLEUTH WORKER HAIRCUT MASSAGE RUNNER SURFER SWIMMER LIFTER GOLFER BOWING BICYCLIST PEDESTRIAN SNOWBOARDER RACING NINJA
SUPERHERO SUPERVILLAIN MAGE FAIRY VAMPIRE MERPERSON ELF GENIE ZOMBIE TROLL FENCER WRESTLERS JUGGLING HANDBALL POLO
CARTWHEEL WEDDING DOLLS STATUE FEEDING PREGNANT HAMSA OGRE GOBLIN GHOST ALIEN EXTRATERRESTRIAL IMP RESTROOM SILHOUETTE
HANDSHAKE ROBOT IDENTIFICATION ROWBOAT BATH SLEEPING BREAST-FEEDING MOYAI SKULL
"""
_CLOTHES = """
SHIRT T-SHIRT JEANS DRESS KIMONO BIKINI CLOTHES SHOE SHOES SANDAL BOOT BOOTS HAT CAP SCARF GLOVES GLOVE COAT SOCKS
SARI VEST SWIMSUIT BRIEFS SHORTS UNIFORM NECKTIE HELMET EYEGLASSES SUNGLASSES GOGGLES PURSE HANDBAG POUCH SATCHEL
CROWN MASK SASH
"""
_SIGNS = """
SYMBOL SIGN SQUARE CIRCLE BUTTON ARROW ARROWS KEYCAP CLOCK INPUT HEARTS DIAMOND NO NON-POTABLE POTABLE TRIANGLE SQUARED
CIRCLED NEGATIVE POINTS EQUALS BACK END ON SOON TOP BUBBLE
"""
# Boards on posts, trunks, barrels and bins, jagged shapes, ladders and shelves; and of the textures, wood and print.
_KEPT = """
STOP PLACARD LOLLIPOP TREE WOOD DRUM BARREL WASTEBASKET BUCKET STAR STARS COLLISION LADDER RAILWAY TRACK NEWSPAPER
POSTER FLAG CALENDAR TEMPLE
"""
_LEFT_OUT = frozenset(f"{_PEOPLE} {_CLOTHES} {_SIGNS} {_KEPT}".split())


def is_wanted(name: str) -> bool:
    """Return whether a file's stem, code points in hexadecimal joined by dashes, is one of the things."""
    if not re.fullmatch(r"[0-9a-f]{4,5}(-fe0f)?", name):
        return False
    point = int(name.split("-")[0], 16)
    called = unicodedata.name(chr(point), "")
    return any(point in block for block in _BLOCKS) and bool(called) and _LEFT_OUT.isdisjoint(called.split())


def read_cutouts(folder: Path) -> list[np.ndarray]:
    """Return the things of a folder, each (H, W, 4) uint8 RGBA, cut to its outline, its longer side 160 pixels.

    Colours are multiplied by their opacity, so that pictures can be resized and turned.

    Raises:
        ValueError: The folder has none.
    """
    things = []
    for path in sorted(folder.glob("*.webp")):
        if not is_wanted(path.stem):
            continue
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
            raise ValueError(f"{path} is no picture with transparency")
        left, top, width, height = cv2.boundingRect((picture[..., 3] > 127).astype(np.uint8))
        piece = picture[top : top + height, left : left + width, [2, 1, 0, 3]].astype(np.float32)
        piece[..., :3] *= piece[..., 3:] / 255
        scale = _SIDE / max(width, height)
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        things.append(cv2.resize(piece, size, interpolation=cv2.INTER_AREA).round().astype(np.uint8))
    if not things:
        raise ValueError(f"{folder} has no picture of a thing: give the folder of Fluent Emoji's .webp files")
    return things


def pasted(things: Sequence[np.ndarray]) -> Kind:
    """Return a kind that pastes one of the objects, upright or not, unchanged or with its shading on a texture."""

    def paste(rng: np.random.Generator, height: int, width: int, paint: Paint) -> Occluder:
        thing = things[int(rng.integers(len(things)))]
        rows, columns = thing.shape[:2]
        spot, _ = whereabouts(rng)
        turn = rng.normal(0, 0.15) if rng.random() < 0.65 else rng.uniform(0, 2 * np.pi)
        scale = width * rng.uniform(0.35, 1.7) / _SIDE * np.exp(rng.normal(0, 0.15, 2))
        scale[0] *= rng.choice([-1, 1])
        matrix = rotation(turn) * scale
        shift = spot * (width, height) - matrix @ np.array([columns / 2, rows / 2])
        drawn = cv2.warpAffine(thing, np.column_stack([matrix, shift]), (width, height), flags=cv2.INTER_LINEAR)
        opacity = drawn[..., 3].astype(np.float32) / 255
        picture = drawn[..., :3].astype(np.float32) / np.maximum(opacity, 1 / 255)[..., None]
        if rng.random() < 0.35:
            light = picture.mean(2)
            light /= max(20.0, float(light[opacity >= 0.5].mean())) if (opacity >= 0.5).any() else 1.0
            picture = paint(height, width) * light.clip(0.2, 1.8)[..., None]
        return Occluder(opacity, picture.clip(0, 255).astype(np.uint8))

    return paste

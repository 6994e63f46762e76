"""The clothing photographs: which belongs to which split, and their 59 garment labels as the 20 labels of LIP.

The labels are those of Clothing Co-Parsing (Yang, Luo and Lin, CVPR 2014). Skin is one label there and is divided by
where it lies. Bags are no part of a person in LIP; they get a label of their own here, which the network learns beside
LIP's and the parser counts as background. `accessories` are mostly clutches and go with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

HAT, HAIR, GLOVE, GLASSES, UPPER, DRESS, COAT, SOCKS, PANTS, JUMPSUIT, SCARF, SKIRT, FACE = range(1, 14)
LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, LEFT_SHOE, RIGHT_SHOE = range(14, 20)
BAG, IN_FRONT = 20, 21  # Background with a name: what a person carries, and what stands before them.
FLIPPED = np.arange(22, dtype=np.uint8)
FLIPPED[[14, 15, 16, 17, 18, 19]] = [15, 14, 17, 16, 19, 18]

GARMENTS: dict[str, int] = {
    "null": 0,
    **dict.fromkeys(("bag", "purse", "wallet", "accessories"), BAG),
    "hat": HAT,
    "hair": HAIR,
    "gloves": GLOVE,
    **dict.fromkeys(("glasses", "sunglasses"), GLASSES),
    **dict.fromkeys(
        ("blouse", "bra", "hoodie", "intimate", "jumper", "shirt", "sweater", "sweatshirt", "t-shirt", "tie", "top"),
        UPPER,
    ),
    **dict.fromkeys(("belt", "vest", "necklace"), UPPER),
    "dress": DRESS,
    **dict.fromkeys(("blazer", "cape", "cardigan", "coat", "jacket"), COAT),
    "socks": SOCKS,
    **dict.fromkeys(("jeans", "leggings", "panties", "pants", "shorts"), PANTS),
    **dict.fromkeys(("bodysuit", "romper", "swimwear"), JUMPSUIT),
    "scarf": SCARF,
    "skirt": SKIRT,
}
"""Garments whose LIP label does not depend on where they are."""

LEGWEAR = ("stockings", "tights")
FOOTWEAR = ("boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers", "wedges")
ON_SKIN = ("skin", "bracelet", "earrings", "ring", "watch")

# As shares of the person's height. A face that touches no other skin is taken whole; one that runs into the chest or
# the arms is cut where the chin is in most photographs.
_FACE_ZONE = 0.16
_FACE_ALONE = 0.20
_FACE_CUT = 0.175
_LEGS = 0.60
_SUIT = 0.55  # Above: the jacket.
_MIXED = (0.40, 0.68)
_MIXED_CUT = 0.52


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph with its labels.

    Attributes:
        name: The file's name without its ending.
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8, LIP labels and `BAG`.
        box: Left, top, right, bottom of everything labelled in the original map, bags among it; right and bottom are
            exclusive.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    box: tuple[int, int, int, int]


def split_of(name: str) -> str:
    """Return `holdout` (17 of 100), `tuning` (5 of 100) or `train`, by a hash of the file's name without its ending."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return "holdout" if bucket < 17 else "tuning" if bucket < 22 else "train"


def read_photographs(root: Path, split: str, *, aligned: bool = True) -> list[Photograph]:
    """Return all photographs of a split, in the order of their names; label maps without a person are left out.

    Args:
        root: The folder with `images`, `labels` and `label_names.json`.
        split: As `split_of` names it.
        aligned: Move the labels to where the photographs' outlines are; otherwise they stay as they were published.
    """
    names: list[str] = json.loads((root / "label_names.json").read_text())
    photographs = []
    for path in sorted((root / "labels").glob("*.png")):
        if split_of(path.stem) != split:
            continue
        garments = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image = cv2.imread(str(root / "images" / f"{path.stem}.jpg"))
        if garments is None or image is None:
            raise ValueError(f"{path} or its photograph cannot be read")
        if np.count_nonzero(garments) == 0:
            continue
        if aligned:
            garments = moved_left(garments)
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        photographs.append(Photograph(path.stem, rgb, to_lip(garments, names), bounding_box(garments > 0)))
    return photographs


def moved_left(garments: np.ndarray) -> np.ndarray:
    """Return the labels moved by one pixel to the left; the last column repeats.

    The published maps lie one pixel right of their photographs: in all 608 of the training split the colours change
    most one pixel left of where the labels change (`tools.parser.offset`). A network that sees mirrored images too
    cannot learn that, only wider outlines. They lie half a pixel low as well, of some 470 that a person is tall; that
    is left alone.
    """
    return np.asarray(cv2.copyMakeBorder(garments[:, 1:], 0, 0, 0, 1, cv2.BORDER_REPLICATE))


def to_lip(garments: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the garment labels as LIP labels.

    Args:
        garments: (H, W) uint8, indices into `names`, one person.
        names: The garment of each label.

    Returns:
        (H, W) uint8 LIP labels and `BAG`. A person's own left is on the right of the image, as in a person facing the
        camera.
    """
    table = np.array([GARMENTS.get(name, 0) for name in names], np.uint8)
    lip: np.ndarray = table[garments]
    if not (garments > 0).any():
        return lip
    person = _is_any(garments, names, (name for name in names if GARMENTS.get(name) not in (0, BAG)))
    if not person.any():
        return lip
    _, top, _, bottom = bounding_box(person)
    suit = _is_any(garments, names, ("suit",))
    rows = np.broadcast_to(np.arange(lip.shape[0])[:, None], lip.shape)
    lip[suit] = np.where(rows[suit] < top + _SUIT * (bottom - top), COAT, PANTS)
    skin = _is_any(garments, names, ON_SKIN)
    for component in _components(skin):
        _label_skin(lip, component, top, bottom)
    middle = float(np.nonzero(person)[1].mean())
    columns = np.broadcast_to(np.arange(lip.shape[1]), lip.shape)
    for label_left, label_right, mask in (
        (LEFT_LEG, RIGHT_LEG, _is_any(garments, names, LEGWEAR) | (lip == LEFT_LEG)),
        (LEFT_SHOE, RIGHT_SHOE, _is_any(garments, names, FOOTWEAR)),
        (LEFT_ARM, RIGHT_ARM, lip == LEFT_ARM),
    ):
        # Legs and shoes are divided at their own middle: a person who leans has them beside that of the whole.
        own = label_left != LEFT_ARM and bool(mask.any())
        centre = (columns[mask].min() + columns[mask].max()) / 2 if own else middle
        lip[mask] = np.where(columns[mask] >= centre, label_left, label_right)
    return lip


def is_person(labels: np.ndarray) -> np.ndarray:
    """Return where LIP's labels 1 to 19 stand: neither background nor what is only carried or in front."""
    return np.asarray((labels > 0) & (labels < BAG))


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom (exclusive) of the true pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _is_any(garments: np.ndarray, names: list[str], wanted: Iterable[str]) -> np.ndarray:
    chosen = set(wanted)
    table = np.array([name in chosen for name in names])
    return np.asarray(table[garments])


def _components(mask: np.ndarray) -> list[np.ndarray]:
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [parts == index for index in range(1, count)]


def _label_skin(lip: np.ndarray, component: np.ndarray, top: int, bottom: int) -> None:
    rows = np.nonzero(component)[0]
    height = (rows - top) / max(1, bottom - top)
    first, last, centre = float(height.min()), float(height.max()), float(height.mean())
    if first < _FACE_ZONE:
        labels = np.where(height < (1.0 if last <= _FACE_ALONE else _FACE_CUT), FACE, LEFT_ARM)
        if last > _MIXED[1]:
            labels = np.where(height > _MIXED_CUT, LEFT_LEG, labels)
    elif first < _MIXED[0] and last > _MIXED[1]:
        # A hand that touches a thigh.
        labels = np.where(height < _MIXED_CUT, LEFT_ARM, LEFT_LEG)
    else:
        labels = np.full(height.shape, LEFT_LEG if centre > _LEGS else LEFT_ARM)
    lip[component] = labels

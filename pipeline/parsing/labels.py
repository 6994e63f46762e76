"""Label sets of human parsers, and the grouping of labels into the four parts.

`label_sets.toml` has the published sets; a user's own set or grouping is a TOML file with the same keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.config import suggestion
from pipeline.config_file import read_toml
from pipeline.errors import ConfigError
from pipeline.parts import SEMANTIC

PART_NAMES = SEMANTIC
"""The four parts of masks, in the order of every array."""

IGNORED = 255
"""Label of pixels without a label in label-map images."""

Kind = Literal["labels", "fields"]
Ids = tuple[int, ...]

_SET_KEYS = ("name", "kind", "classes", "flip_pairs", "body", *PART_NAMES)
_GROUPING_KEYS = ("name", "label_set", "body", *PART_NAMES)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Meaning of the channels of a parser's output.

    Attributes:
        name: `lip-20`, ... or the name in a user's file.
        classes: Class names by id. In a set of labels, class 0 is the background.
        flip_pairs: Ids that are swapped when an image is mirrored.
        parts: For each of `PART_NAMES` its ids (grouping `spreid`), or None if the set has none.
        body: The ids of the body.
        kind: `labels`: a pixel has one label, channels sum to 1, groups add up. `fields`: channels overlap, each in
            [0, 1], and a group is their maximum.
    """

    name: str
    classes: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    parts: tuple[Ids | None, ...]
    body: Ids
    kind: Kind = "labels"

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def flipped(self) -> Ids:
        """Return for each class its counterpart in the mirror image."""
        order = list(range(self.count))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)


@dataclass(frozen=True, slots=True)
class Grouping:
    """The label ids of the body and of each of `PART_NAMES`, None for a part that the label set does not have.

    `name` is `spreid`, `ssp` or that in a user's file.
    """

    name: str
    parts: tuple[Ids | None, ...]
    body: Ids

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the parts without labels; their masks are zeros."""
        return tuple(name for name, ids in zip(PART_NAMES, self.parts, strict=True) if ids is None)


def label_set_names() -> tuple[str, ...]:
    """Return the names of the label sets in the package."""
    return tuple(name for name in _table() if name != "groupings")


def grouping_names(label_set: LabelSet) -> tuple[str, ...]:
    """Return the names of the groupings in the package that are defined for `label_set`."""
    extra = [name for name, table in _table()["groupings"].items() if label_set.name in table["label_sets"]]
    return ("spreid", *extra)


def load_label_set(name_or_toml: str) -> LabelSet:
    """Return a label set by name, or read a user's from a TOML file.

    Raises:
        ConfigError: The set or file does not exist, or the file is not valid.
    """
    if (path := Path(name_or_toml)).suffix == ".toml":
        return _label_set(read_toml(path, "the label set's file"), where=name_or_toml, name=path.stem)
    if name_or_toml not in label_set_names():
        raise ConfigError(
            f"unknown label set {name_or_toml!r}",
            expected=f"{' | '.join(label_set_names())} | a .toml file",
            hint=suggestion(name_or_toml, label_set_names()),
        )
    return _label_set(_table()[name_or_toml], where="label_sets.toml", name=name_or_toml)


def load_grouping(name_or_toml: str, label_set: LabelSet) -> Grouping:
    """Return a grouping of `label_set` by name, or read a user's from a TOML file.

    Raises:
        ConfigError: The grouping does not exist for this label set, or the file is not valid.
    """
    if (path := Path(name_or_toml)).suffix == ".toml":
        return _grouping(read_toml(path, "the grouping's file"), label_set, where=name_or_toml, name=path.stem)
    if name_or_toml == "spreid":
        return Grouping("spreid", label_set.parts, label_set.body)
    known = grouping_names(label_set)
    if name_or_toml not in known:
        defined = _table()["groupings"].get(name_or_toml)
        raise ConfigError(
            f"unknown grouping {name_or_toml!r} of the label set {label_set.name}",
            expected=f"{' | '.join(known)} | a .toml file",
            hint=f"{name_or_toml} is defined for {', '.join(defined['label_sets'])}"
            if defined
            else suggestion(name_or_toml, known),
        )
    table = {key: value for key, value in _table()["groupings"][name_or_toml].items() if key != "label_sets"}
    return _grouping(table, label_set, where="label_sets.toml", name=name_or_toml)


def group_soft(soft: Tensor, label_set: LabelSet, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """Group soft label maps (B, C, h, w) in [0, 1] into the four parts and the body.

    Returns:
        Parts (B, 4, h, w) in the order of `PART_NAMES`, zeros for absent parts, and the body (B, 1, h, w); both in
        [0, 1].

    Raises:
        ValueError: The number of channels is not that of the label set (an error of the parser).
    """
    if soft.ndim != 4 or soft.shape[1] != label_set.count:
        raise ValueError(f"soft labels of shape {tuple(soft.shape)} do not fit {label_set.name}: {label_set.count}")
    groups = (*grouping.parts, grouping.body)
    if label_set.kind == "fields":
        blank = soft.new_zeros((soft.shape[0], *soft.shape[2:]))
        combined = torch.stack([soft[:, list(ids)].amax(dim=1) if ids else blank for ids in groups], dim=1)
        return combined[:, :-1], combined[:, -1:]
    # As one matrix product, seven times as fast as picking the channels of each group.
    member = soft.new_zeros((len(groups), soft.shape[1]))
    for row, ids in zip(member, groups, strict=True):
        row[list(ids or ())] = 1
    # A sum of soft-max outputs can exceed 1 by a rounding error.
    summed = torch.matmul(member, soft.flatten(2)).clamp_(max=1.0).reshape(len(soft), len(groups), *soft.shape[2:])
    return summed[:, :-1], summed[:, -1:]


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((resources.files("pipeline.parsing") / "label_sets.toml").read_text(encoding="utf-8"))


def _label_set(table: Mapping[str, Any], *, where: str, name: str) -> LabelSet:
    refuse_unknown(table, _SET_KEYS, where)
    listed = table.get("classes")
    classes: list[str] = listed if isinstance(listed, list) and all(isinstance(each, str) for each in listed) else []
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ConfigError("`classes` must list two or more different class names", where=where)
    kind = table.get("kind", "labels")
    if kind not in ("labels", "fields"):
        raise ConfigError(f"kind = {kind!r}", where=where, expected="labels | fields")
    pairs = table.get("flip_pairs", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ConfigError("`flip_pairs` must be a list of pairs", where=where, expected='[["left-arm", "right-arm"]]')
    flip = [_ids(pair, classes, "flip_pairs", where) for pair in pairs]
    flat = [index for pair in flip for index in pair]
    if len(set(flat)) != len(flat):
        raise ConfigError("a class is in two of the `flip_pairs`, or paired with itself", where=where)
    parts, body = _parts(table, classes, kind, where)
    named = table.get("name", name)
    return LabelSet(str(named), tuple(classes), tuple((pair[0], pair[1]) for pair in flip), parts, body, kind)


def _grouping(table: Mapping[str, Any], label_set: LabelSet, *, where: str, name: str) -> Grouping:
    refuse_unknown(table, _GROUPING_KEYS, where)
    meant = table.get("label_set", label_set.name)
    if meant != label_set.name:
        raise ConfigError(
            f"this grouping is for the label set {meant!r}", where=where, expected=f"one for {label_set.name}"
        )
    parts, body = _parts(table, label_set.classes, label_set.kind, where)
    if "body" not in table:
        body = label_set.body
    return Grouping(str(table.get("name", name)), parts, body)


def _parts(
    table: Mapping[str, Any], classes: Sequence[str], kind: Kind, where: str
) -> tuple[tuple[Ids | None, ...], Ids]:
    """Read and check the four parts and the body of a table."""
    parts = tuple(_ids(table[part], classes, part, where) or None if part in table else None for part in PART_NAMES)
    background = 0 if kind == "labels" else None
    if "body" in table:
        body = _ids(table["body"], classes, "body", where)
    else:
        body = tuple(index for index in range(len(classes)) if index != background)
    owner: dict[int, str] = {}
    for part, ids in zip(PART_NAMES, parts, strict=True):
        for index in ids or ():
            if index == background:
                raise ConfigError(f"{part} contains the background class {classes[index]!r}", where=where)
            if kind == "labels" and index in owner:
                raise ConfigError(f"{classes[index]!r} is in both {owner[index]} and {part}", where=where)
            owner[index] = part
    if not body or background in body:
        raise ConfigError("`body` must name the classes of the body, without the background", where=where)
    return parts, body


def _ids(entries: Any, classes: Sequence[str], key: str, where: str) -> Ids:
    if not isinstance(entries, list):
        raise ConfigError(f"`{key}` must be a list of class names or numbers", where=where)
    ids = []
    for entry in entries:
        if isinstance(entry, str) and entry in classes:
            ids.append(classes.index(entry))
        elif isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(classes):
            ids.append(entry)
        else:
            raise ConfigError(
                f"`{key}` names the class {entry!r}, which the label set does not have",
                where=where,
                expected=f"a name, or a number from 0 to {len(classes) - 1}",
                hint=suggestion(entry, classes) if isinstance(entry, str) else None,
            )
    if len(set(ids)) != len(ids):
        raise ConfigError(f"`{key}` names a class twice", where=where)
    return tuple(ids)


def refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str | Path) -> None:
    """Raise a `ConfigError` for the first key that is not among the known ones."""
    for key in table:
        if key not in known:
            raise ConfigError(
                f"unknown key {key!r}", where=where, expected=", ".join(known), hint=suggestion(key, known)
            )

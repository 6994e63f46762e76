from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.formats import masks as maskfile
from pipeline.parsing.labels import (
    PART_NAMES,
    Grouping,
    LabelSet,
    group_soft,
    grouping_names,
    label_set_names,
    load_grouping,
    load_label_set,
)

SETS = label_set_names()

# Written out a second time, from the table of the method's page.
LIP = {
    "head": {1, 2, 4, 13},
    "upper": {3, 5, 6, 7, 10, 11, 14, 15},
    "lower": {9, 12, 16, 17},
    "shoes": {8, 18, 19},
}
SSP = {"head": {1, 2, 4, 7, 13}, "upper": {5, 6, 10, 14, 15}, "lower": {9, 12, 16, 17}, "shoes": {8, 18, 19}}


def as_sets(grouping: Grouping) -> dict[str, set[int]]:
    return {name: set(ids or ()) for name, ids in zip(PART_NAMES, grouping.parts, strict=True)}


def test_parts_have_the_order_of_the_mask_file() -> None:
    assert PART_NAMES == maskfile.PART_NAMES


def test_all_published_sets_are_there() -> None:
    assert set(SETS) == {
        "lip-20", "cihp-20", "atr-18", "pascal-7", "fashn-18", "sapiens-28", "voc-21", "pifpaf-36"
    }  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_sets_match_the_reference_table(name: str, shared: Path) -> None:
    reference = json.loads((shared / "vectors" / "label_groups.json").read_text())[name]
    label_set = load_label_set(name)
    if isinstance(reference["classes"], list):
        assert list(label_set.classes) == reference["classes"]
    for part, ids in zip(PART_NAMES, label_set.parts, strict=True):
        assert set(ids or ()) == set(reference[part] or ())
        assert (ids is None) == (not reference[part])
    if "flip_pairs" in reference:
        assert {frozenset(pair) for pair in label_set.flip_pairs} == {frozenset(p) for p in reference["flip_pairs"]}
    if "foreground" in reference:
        assert list(label_set.body) == reference["foreground"]
    for index in reference.get("other_foreground", []):
        assert index in label_set.body


@pytest.mark.parametrize("name", SETS)
def test_the_size_in_a_sets_name_is_true(name: str) -> None:
    assert load_label_set(name).count == int(name.rpartition("-")[2])


@pytest.mark.parametrize("name", SETS)
def test_flip_is_an_involution_that_swaps_left_and_right(name: str) -> None:
    label_set = load_label_set(name)
    order = label_set.flipped()
    assert [order[order[index]] for index in range(label_set.count)] == list(range(label_set.count))
    for left, right in label_set.flip_pairs:
        assert "left" in label_set.classes[left]
        assert label_set.classes[left].replace("left", "right") == label_set.classes[right]
    sided = {index for index, class_name in enumerate(label_set.classes) if "left" in class_name.split("_to_")[0]}
    paired = {index for pair in label_set.flip_pairs for index in pair}
    # `left_eye_to_right_eye` and its like are their own mirror image.
    assert all(index in paired or "right" in label_set.classes[index] for index in sided)


def test_groupings_of_lip() -> None:
    lip = load_label_set("lip-20")
    assert grouping_names(lip) == ("spreid", "ssp")
    assert as_sets(load_grouping("spreid", lip)) == LIP
    assert as_sets(load_grouping("ssp", lip)) == SSP
    assert load_grouping("ssp", lip).body == tuple(range(1, 20))


def test_parts_that_a_set_cannot_give_are_named() -> None:
    assert load_grouping("spreid", load_label_set("pascal-7")).absent == ("shoes",)
    assert load_grouping("spreid", load_label_set("voc-21")).absent == PART_NAMES
    assert load_grouping("spreid", load_label_set("lip-20")).absent == ()


def literal_groups(soft: torch.Tensor, parts: list[set[int]], body: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch, classes, height, width = soft.shape
    grouped = torch.zeros(batch, len(parts), height, width)
    covered = torch.zeros(batch, 1, height, width)
    for image in range(batch):
        for label in range(classes):
            for row in range(height):
                for column in range(width):
                    value = soft[image, label, row, column]
                    for part, ids in enumerate(parts):
                        if label in ids:
                            grouped[image, part, row, column] += value
                    if label in body:
                        covered[image, 0, row, column] += value
    return grouped, covered


def test_group_soft_equals_the_literal_sum() -> None:
    lip = load_label_set("lip-20")
    soft = torch.rand(2, 20, 3, 2, generator=torch.Generator().manual_seed(0)).softmax(1)
    parts, body = group_soft(soft, lip, load_grouping("spreid", lip))
    expected_parts, expected_body = literal_groups(soft, [LIP[name] for name in PART_NAMES], set(range(1, 20)))
    torch.testing.assert_close(parts, expected_parts)
    torch.testing.assert_close(body, expected_body)


@pytest.mark.parametrize("name", [name for name in SETS if name != "pifpaf-36"])
@given(seed=st.integers(0, 2**31))
def test_occupancy_is_conserved(name: str, seed: int) -> None:
    label_set = load_label_set(name)
    soft = torch.rand(1, label_set.count, 4, 3, generator=torch.Generator().manual_seed(seed)).mul(4).softmax(1)
    parts, body = group_soft(soft, label_set, load_grouping("spreid", label_set))
    # Nothing is counted twice, and what is in no part and not background is other foreground.
    assert float((parts.sum(1) - body[:, 0]).max()) < 1e-5
    outside = soft[:, [index for index in range(label_set.count) if index not in label_set.body]].sum(1)
    torch.testing.assert_close(body[:, 0] + outside, torch.ones(1, 4, 3))


@pytest.mark.parametrize("name", SETS)
@given(seed=st.integers(0, 2**31))
def test_grouping_does_not_care_about_mirrors(name: str, seed: int) -> None:
    # Left and right belong to the same part, so swapping labels changes nothing.
    label_set = load_label_set(name)
    soft = torch.rand(1, label_set.count, 3, 3, generator=torch.Generator().manual_seed(seed))
    soft = soft if label_set.kind == "fields" else soft.softmax(1)
    grouping = load_grouping("spreid", label_set)
    parts, body = group_soft(soft, label_set, grouping)
    swapped_parts, swapped_body = group_soft(soft[:, list(label_set.flipped())], label_set, grouping)
    torch.testing.assert_close(swapped_parts, parts)
    torch.testing.assert_close(swapped_body, body)


def test_fields_are_combined_by_their_maximum() -> None:
    pifpaf = load_label_set("pifpaf-36")
    soft = torch.zeros(1, 36, 1, 1)
    soft[0, 0], soft[0, 1], soft[0, 11] = 0.25, 0.75, 0.5
    parts, body = group_soft(soft, pifpaf, load_grouping("spreid", pifpaf))
    # The hip joint, 11, belongs to the upper and to the lower body.
    assert parts[0, :, 0, 0].tolist() == [0.75, 0.5, 0.5, 0.0]
    assert body.item() == 0.75


def test_wrong_number_of_channels_is_a_defect() -> None:
    lip = load_label_set("lip-20")
    with pytest.raises(ValueError, match="do not fit lip-20"):
        group_soft(torch.zeros(1, 7, 2, 2), lip, load_grouping("spreid", lip))


def test_own_label_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'classes = ["nothing", "face", "left-sleeve", "right-sleeve", "bag"]\n'
        'flip_pairs = [["left-sleeve", "right-sleeve"]]\nhead = ["face"]\nupper = [2, "right-sleeve"]\n'
    )
    label_set = load_label_set(str(path))
    assert label_set == LabelSet(
        name="mine",
        classes=("nothing", "face", "left-sleeve", "right-sleeve", "bag"),
        flip_pairs=((2, 3),),
        parts=((1,), (2, 3), None, None),
        body=(1, 2, 3, 4),
    )
    assert label_set.flipped() == (0, 1, 3, 2, 4)


def test_own_grouping(tmp_path: Path) -> None:
    path = tmp_path / "coats-are-heads.toml"
    path.write_text('label_set = "lip-20"\nhead = ["hat", 7]\nlower = ["pants"]\nshoes = []\n')
    grouping = load_grouping(str(path), load_label_set("lip-20"))
    assert grouping.name == "coats-are-heads"
    assert grouping.parts == ((1, 7), None, (9,), None)
    assert grouping.absent == ("upper", "shoes")
    assert grouping.body == tuple(range(1, 20))


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ('heads = ["hat"]', "unknown key 'heads'", "did you mean 'head'?"),
        ('head = ["hut"]', "the class 'hut'", "did you mean 'hat'?"),
        ("head = [20]", "the class 20", None),
        ("head = [true]", "the class True", None),
        ('head = "hat"', "must be a list", None),
        ('head = ["background"]', "contains the background", None),
        ('head = ["hat"]\nupper = ["hat"]', "in both head and upper", None),
        ('head = ["hat", 1]', "names a class twice", None),
        ('label_set = "atr-18"\nhead = ["hat"]', "for the label set 'atr-18'", None),
        ("body = []", "`body` must name", None),
        ("head = [", "cannot be read", None),
    ],
)
def test_faulty_groupings_are_refused(tmp_path: Path, text: str, found: str, hint: str | None) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=found) as caught:
        load_grouping(str(path), load_label_set("lip-20"))
    assert caught.value.where == str(path)
    if hint is not None:
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "`classes` must list"),
        ('classes = ["a"]', "`classes` must list"),
        ('classes = ["a", "a"]', "`classes` must list"),
        ('classes = ["a", "b"]\nkind = "maps"', "kind = 'maps'"),
        ('classes = ["a", "b"]\nflip_pairs = ["b"]', "must be a list of pairs"),
        ('classes = ["a", "b", "c"]\nflip_pairs = [["b", "b"]]', "names a class twice"),
        ('classes = ["a", "b", "c", "d"]\nflip_pairs = [["b", "c"], ["c", "d"]]', "in two of the `flip_pairs`"),
    ],
)
def test_faulty_label_sets_are_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=found):
        load_label_set(str(path))


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_label_set("lip20")
    assert caught.value.hint == "did you mean 'lip-20'?"
    with pytest.raises(ConfigError) as caught:
        load_grouping("spried", load_label_set("lip-20"))
    assert caught.value.hint == "did you mean 'spreid'?"
    with pytest.raises(ConfigError) as caught:
        load_grouping("ssp", load_label_set("atr-18"))
    assert caught.value.hint == "ssp is defined for lip-20"
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_label_set("missing.toml")

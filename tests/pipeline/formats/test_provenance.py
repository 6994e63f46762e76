from __future__ import annotations

import pytest

from pipeline.formats.provenance import Difference, Provenance, fingerprint


def test_provenance__equal_values_in_any_order_have_one_fingerprint() -> None:
    first, second = Provenance({"b": 1, "a": "x", "none": None}), Provenance({"a": "x", "b": 1})
    assert first == second
    assert hash(first) == hash(second)
    assert first.fingerprint() == second.fingerprint() == fingerprint({"a": "x", "b": 1})
    assert first.diff(second) == ()
    assert first != Provenance({"a": "x", "b": 1.0})


def test_provenance__diff_names_changed_new_and_missing_keys() -> None:
    recorded = Provenance({"seed": 1, "amp": "off", "same": True})
    current = Provenance({"seed": 2, "flip": False, "same": True})
    assert recorded.diff(current) == (
        Difference("amp", "off", None),
        Difference("flip", None, False),
        Difference("seed", 1, 2),
    )
    # True is not 1: JSON keeps them apart.
    assert Provenance({"flip": True}).diff(Provenance({"flip": 1})) == (Difference("flip", True, 1),)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference("train.lr", 0.1, 0.2), ("train.lr", "0.1", "0.2")),
        (Difference("masks", "a" * 64, "b" * 64), ("masks", "aaaaaaaa ", "bbbbbbbb")),
        (Difference("flip", None, True), ("flip", "new", "true")),
        (Difference("flip", "yes", None), ("flip", "gone", '"yes"')),
    ],
)
def test_difference__shows_key_and_both_values(difference: Difference, words: tuple[str, ...]) -> None:
    assert all(word in f"{difference} " for word in words)
    assert "a" * 9 not in str(difference)


def test_flatten__joins_keys_and_keeps_lists_as_text() -> None:
    record = Provenance.flatten({"train": {"lr": 0.1, "steps": (3, 5)}, "model": {"weights": None}})
    assert dict(record.values) == {"train.lr": 0.1, "train.steps": "[3,5]"}


def test_provenance__survives_json() -> None:
    record = Provenance({"name": "café", "count": 3, "rate": 0.1, "on": False})
    assert Provenance.from_json(record.to_json()) == record
    assert record.to_json().isascii()


@pytest.mark.parametrize("text", ["[1]", '{"a": [1]}', '{"a": {"b": 1}}', "{", '{"a": NaN}'])
def test_from_json__refuses_what_is_not_a_flat_table(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        Provenance.from_json(text)


def test_provenance__refuses_nan_and_nested_values() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Provenance({"a": float("nan")})
    with pytest.raises(TypeError, match="a is a list"):
        Provenance({"a": [1]})  # type: ignore[dict-item]

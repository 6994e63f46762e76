import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ModelConfig, RunConfig, TrainConfig, known_keys
from pipeline.config_file import PRESETS, load_config, parse_override, preset_table, read_toml, to_toml
from pipeline.errors import ConfigError


def error_of(*overrides, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides)
    return caught.value


# Resolution


@pytest.mark.parametrize("name", PRESETS)
def test_presets__load_and_carry_their_name(name):
    assert load_config(preset=name).name == name


def test_preset_table__unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError) as caught:
        preset_table("papr")
    assert caught.value.hint == "did you mean 'paper'?"


def test_load_config__overrides_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('preset = "strong"\n[train]\nepochs = 7\nlr = 0.1\n[model]\nstrips = [0.2, 0.3, 0.5]\n')
    config = load_config(path, overrides=["train.epochs=9"])
    assert config.train.epochs == 9
    assert config.train.lr == 0.1
    assert config.train.schedule == "cosine", "of the preset"
    assert config.model.strips == (0.2, 0.3, 0.5)
    assert load_config(path, preset="baseline").model.kind == "baseline"


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a.b=0.5", {"a": {"b": 0.5}}),
        ("a.b=true", {"a": {"b": True}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ('a.b="1"', {"a": {"b": "1"}}),
        ("a.b=market1501:/data/Market", {"a": {"b": "market1501:/data/Market"}}),
        ("name=2024", {"name": "2024"}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
    ],
)
def test_parse_override__value_is_toml_or_bare_text(text, table):
    assert parse_override(text) == table


@pytest.mark.parametrize("text", ["a.b", "=3", "a.=3", ".b=3"])
def test_parse_override__needs_key_and_value(text):
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert repr(text) in caught.value.message
    assert "train.epochs=60" in caught.value.expected


# Errors


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("train.epohcs=3", "train.epohcs", "'train.epochs'"),
        ("epochs=3", "epochs", "'train.epochs'"),
        ("train.foo=3", "train.foo", None),
        ("matchin.rule=mean", "matchin.rule", "'matching.rule'"),
        ("train.balance=1", "train.balance", "'loss.balance'"),
    ],
)
def test_unknown_key__suggests_the_nearest(text, key, hint):
    error = error_of(text)
    assert error.message == f"unknown key {key!r}"
    assert error.where == f"--set {text}"
    assert (error.hint is None) if hint is None else (hint in error.hint)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train.epochs=0", ["train.epochs = 0"]),
        ("train.epochs=many", ["train.epochs = 'many'", "integer"]),
        ("train.epochs={a = 1}", ["train.epochs"]),
        ("model.height=100", ["model.height = 100", "multiple of 16"]),
        ("model.strips=[0.5, 0.5, 0.5]", ["model.strips"]),
        ("matching.rule=meen", ["matching.rule = 'meen'", "'shrunk', 'mean'", "'mean'"]),
        ("masks.batch_size=none", ["masks.batch_size = 'none'"]),
        ("loss.balance=1.5", ["loss.balance = 1.5"]),
        ("name=../x", ["name = '../x'"]),
        ("data.tests=3", ["data.tests", '["...", "..."]']),
        ("train=3", ["train = 3", "section"]),
    ],
)
def test_invalid_value__is_named_with_its_origin(text, parts):
    error = error_of(text)
    assert error.where == f"--set {text}"
    for part in parts:
        assert part in str(error)


def test_invalid_value__is_attributed_to_the_override_that_set_it():
    error = error_of("model.height=300", "model.weights=none")
    assert error.where == "--set model.height=300"


def test_invalid_combination__names_all_keys_involved():
    error = error_of("matching.rule=sum", "matching.bootstrap=9", "matching.query_expansion=3")
    assert "query_expansion" in error.message
    assert error.where == "--set matching.query_expansion=3, --set matching.rule=sum" or (
        error.where == "--set matching.rule=sum, --set matching.query_expansion=3"
    )


def test_all_errors__are_reported_at_once(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[train]\nepohcs = 3\nlr = -1\n[modle]\nheight = 64\nkind = 'sgsfa'\n[matching]\nrule = 'meen'\n")
    error = error_of("train.epochs", "synth.ids=0", path=path)
    assert "7 errors" in error.message
    for part in ("train.epohcs", "'train.epochs'", "train.lr", "modle.height", "'model.height'", "modle.kind", "'mean'",
                 "synth.ids", str(path)):  # fmt: skip
        assert part in error.message


def test_read_toml__names_file_and_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path / "none.toml", "list", hint="h")
    assert caught.value.hint == "h"
    broken = tmp_path / "broken.toml"
    for content in (b"[train\n", b"\xff\xfe\x00"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_toml(broken, "list")
        assert caught.value.where == str(broken)
    named = tmp_path / "named.toml"
    named.write_text("preset = 3\n")
    assert error_of(path=named).where == str(named)


def test_read_toml__accepts_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "mine"\n', encoding="utf-8-sig")
    assert load_config(path).name == "mine"


# Writing


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("comments", [False, True])
def test_to_toml__reads_back_equal(tmp_path, preset, comments):
    config = load_config(preset=preset, overrides=["masks.file=masks.h5", "data.tests=['a:b', 'c:d']"])
    path = tmp_path / "a.toml"
    path.write_text(to_toml(config, comments=comments), encoding="utf-8")
    assert load_config(path) == config


@given(
    st.builds(
        TrainConfig,
        epochs=st.integers(1, 10**6),
        lr=st.floats(1e-12, 10.0),
        milestones=st.lists(st.integers(1, 500), max_size=5).map(tuple),
        deterministic=st.booleans(),
        checkpoint_minutes=st.floats(0, 1e6),
    ),
    st.builds(ModelConfig, weights=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1)),
)
def test_to_toml__any_value_survives(train, model):
    config = RunConfig(train=train, model=model)
    assert RunConfig.model_validate(tomllib.loads(to_toml(config, comments=True))) == config


def test_to_toml__comments_describe_every_key():
    text = to_toml(RunConfig(), comments=True)
    for key in known_keys():
        assert key.rpartition(".")[2] in text
    assert "# lambda of eq. 11" in text
    assert "# file = ..." in text

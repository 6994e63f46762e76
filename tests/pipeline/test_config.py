import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import (
    PRESETS,
    ModelConfig,
    RunConfig,
    TrainConfig,
    known_keys,
    load_config,
    parse_override,
    preset_table,
    to_toml,
)
from pipeline.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_carry_their_name(name):
    assert load_config(preset=name).name == name


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        preset_table("papr")
    assert caught.value.hint == "did you mean 'paper'?"


def test_overrides_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('preset = "strong"\n[train]\nepochs = 7\nlr = 0.1\n[model]\nstrips = [0.2, 0.3, 0.5]\n')
    config = load_config(path, overrides=["train.epochs=9"])
    assert config.train.epochs == 9
    assert config.train.lr == 0.1
    assert config.train.schedule == "cosine"  # of the preset
    assert config.model.strips == (0.2, 0.3, 0.5)


def test_a_preset_given_outright_replaces_the_file_s_own(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('preset = "strong"\n')
    assert load_config(path, preset="baseline").model.kind == "baseline"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'?"),
        ("epochs=3", "did you mean 'train.epochs'?"),
        ("train.foo=3", None),
        ("matchin.rule=mean", "did you mean 'matching'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(text, hint):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[text])
    assert caught.value.hint == hint
    assert caught.value.where == f"--set {text}"


def test_a_section_is_not_a_value():
    with pytest.raises(ConfigError, match="is a section"):
        load_config(overrides=["train=3"])


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a.b=0.5", {"a": {"b": 0.5}}),
        ("a.b=true", {"a": {"b": True}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ('a.b="1"', {"a": {"b": "1"}}),
        ("a.b=market1501:/data/Market", {"a": {"b": "market1501:/data/Market"}}),
        ("name=x", {"name": "x"}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
    ],
)
def test_overrides_are_toml_or_else_bare_text(text, table):
    assert parse_override(text) == table


@pytest.mark.parametrize("text", ["a.b", "=3", "a.=3", ".b=3"])
def test_what_is_no_override(text):
    with pytest.raises(ConfigError, match="is not an override"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=many", "train.epochs"),
        ("model.height=100", "100"),
        ("model.strips=[0.5, 0.5, 0.5]", "strips"),
        ("matching.rule=meen", "matching.rule"),
        ("loss.balance=1.5", "loss.balance"),
        ("name=../x", "name"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin(text, where):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[text])
    assert where in caught.value.message
    assert caught.value.where is None or caught.value.where == f"--set {text}"


def test_a_wrong_choice_names_the_right_ones():
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["matching.rule=meen"])
    assert "did you mean 'mean'?" in (caught.value.expected or "")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(broken)
    assert caught.value.where == str(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(broken)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    """Notepad begins files with one."""
    path = tmp_path / "a.toml"
    path.write_text('name = "mine"\n', encoding="utf-8-sig")
    assert load_config(path).name == "mine"


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("comments", [False, True])
def test_written_toml_reads_back_equal(tmp_path, preset, comments):
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
def test_any_value_survives_toml(train, model):
    config = RunConfig(train=train, model=model)
    assert RunConfig.model_validate(tomllib.loads(to_toml(config, comments=True))) == config


def test_comments_explain_every_key():
    text = to_toml(RunConfig(), comments=True)
    for key in known_keys():
        assert key.rpartition(".")[2] in text
    assert "# lambda of eq. 11" in text
    assert "# file = ..." in text


def test_every_field_says_what_it_means():
    for section in (RunConfig, *(info.annotation for info in RunConfig.model_fields.values())):
        for name, info in getattr(section, "model_fields", {}).items():
            if not isinstance(info.annotation, type) or not hasattr(info.annotation, "model_fields"):
                assert info.description, f"{section}.{name}"


def test_execution_fields_are_not_decisive():
    fields = TrainConfig.decisive_fields()
    assert "epochs" in fields
    assert not {"device", "compile", "channels_last"} & set(fields)


def test_a_configuration_cannot_be_changed():
    config = RunConfig()
    with pytest.raises(Exception, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USERPROFILE", "/home/ada")
    keys = ("artifacts", "masks.file", "masks.grouping", "model.weights", "extract.checkpoint", "matching.features")
    config = load_config(overrides=[f"{key}=~/a b/c.toml" for key in keys])
    values = (config.artifacts, config.masks.file, config.masks.grouping, config.model.weights)
    assert {Path(value) for value in (*values, config.extract.checkpoint, config.matching.features)} == {
        Path("/home/ada/a b/c.toml")
    }
    assert load_config(overrides=["extract.checkpoint=~no-such-user/x"]).extract.checkpoint == Path("~no-such-user/x")


@pytest.mark.parametrize("text", ["name=2024", "name=2024-05-01", "masks.file=2024", "model.weights=1e5"])
def test_text_may_look_like_a_number(text):
    key, _, value = text.partition("=")
    section, _, name = key.rpartition(".")
    config = load_config(overrides=[text])
    assert str(getattr(getattr(config, section) if section else config, name)) == value


def test_messages_of_sections_are_plain():
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["model.height=100"])
    assert caught.value.message == "[model]: input size 100x128 is not a multiple of 16"


def test_a_list_that_is_no_list_says_how_one_is_written():
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["data.tests=csv:a.csv"])
    assert caught.value.expected == '["...", "..."]'


@pytest.mark.parametrize(("given", "near"), [("resnet5O", "did you mean 'resnet50'?"), ("vgg16", "no such backbone")])
def test_a_backbone_that_is_none_is_named_before_any_work(given, near):
    with pytest.raises(ConfigError, match=r"model\.backbone") as caught:
        load_config(overrides=[f"model.backbone={given}"])
    assert near in str(caught.value)
    assert load_config(overrides=["model.backbone=timm:resnet26d"]).model.backbone == "timm:resnet26d"


@pytest.mark.parametrize("rule", ["sum", "query"])
def test_query_expansion_does_not_go_with_rules_that_add_up(rule):
    with pytest.raises(ConfigError, match="query_expansion does not go with"):
        load_config(overrides=[f"matching.rule={rule}", "matching.query_expansion=5"])

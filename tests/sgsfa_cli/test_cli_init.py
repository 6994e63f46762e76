import tomllib

from pipeline.config_file import load_config
from sgsfa_cli.options import setting


def test_init__writes_every_key_with_its_meaning(sgsfa, folder):
    sgsfa("init", "new.toml", "--preset", "strong", "--set", "name=other")
    text = (folder / "new.toml").read_text()
    assert "# lambda of eq. 11" in text
    assert tomllib.loads(text)["name"] == "other"
    assert load_config(folder / "new.toml") == load_config(preset="strong", overrides=["name=other"])


def test_init__does_not_overwrite(sgsfa, folder):
    before = (folder / "sgsfa.toml").read_text()
    assert "--force" in sgsfa("init", code=2).stderr
    assert (folder / "sgsfa.toml").read_text() == before
    sgsfa("init", "--force")
    assert load_config(folder / "sgsfa.toml") == load_config()


def test_setting__options_read_back_as_they_were_given():
    text = 'a "b" \\ \u00e9 \U0001f600 \x7f \t'
    option = setting("masks.parser", help="")
    assert load_config(overrides=option.overrides(text)).masks.parser == text
    assert option.overrides(None) == []

import pytest
from pydantic import ValidationError

from pipeline.config import ModelConfig, RunConfig, Section, TrainConfig, known_keys, section_of, suggestion


def test_every_field_is_described():
    for key, info in known_keys().items():
        assert info.description, key


def test_known_keys__are_dotted_and_plain():
    keys = known_keys()
    assert {"name", "train.epochs", "matching.rule"} <= set(keys)
    assert all(section_of(info) is None for info in keys.values())
    assert issubclass(section_of(RunConfig.model_fields["train"]), Section)


def test_decisive_fields__leave_out_execution():
    fields = TrainConfig.decisive_fields()
    assert "epochs" in fields
    assert not {"device", "compile", "channels_last"} & set(fields)


def test_configuration__is_frozen():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize(
    "values",
    [{"height": 300}, {"width": 40}, {"strips": (0.5, 0.5, 0.5)}, {"strips": (0, 0.5, 0.5)}, {"backbone": "resnet51"}],
)
def test_model__rejects_sizes_and_names_that_do_not_fit(values):
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**values)
    assert [error["loc"] for error in caught.value.errors()] == [tuple(values)]


def test_suggestion__only_of_what_is_near():
    assert suggestion("papr", ("paper", "demo")) == "did you mean 'paper'?"
    assert suggestion("papr", ("paper",), "x:", ":y") == "did you mean 'x:paper:y'?"
    assert suggestion("zzz", ("paper", "demo")) is None


@pytest.mark.parametrize("settings", [{"schedule_epochs": 0, "epochs": 5}, {"schedule_epochs": 5}])
def test_train__warm_up_as_long_as_the_training_is_refused(settings):
    with pytest.raises(ValidationError, match="never reaches `lr`"):
        TrainConfig(warmup_epochs=5, **settings)
    TrainConfig(warmup_epochs=4, **settings)

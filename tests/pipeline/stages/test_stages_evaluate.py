import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError, FormatError, UserError, WeightsError
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.extract import Extract
from pipeline.stages.plan import make_plan
from pipeline.stages.sources import Sources


def check(stage, what):
    return next(check for check in stage.checks() if check.what == what).run()


def test_matches__must_exist_before_the_first_stage(configure, people, run, fakes):
    people.write_text(people.read_text().replace(",2,gallery", ",1,gallery"))
    with pytest.raises(DataError, match="another camera") as caught:
        run(configure())
    assert caught.value.where == configure().data.source
    assert fakes.took() == []
    # Features are useful all the same.
    assert run(configure(), until="extract")[0] == ["masks", "train", "extract"]


def test_options__must_work_on_a_gallery_that_is_streamed(configure, monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.evaluate.MEMORY_BYTES", 2 << 30)
    config = configure("matching.rerank=true")
    stage = Evaluate(config, Sources(config))
    assert "shrunk" in check(stage, "matching")
    monkeypatch.setattr(Sources, "count_images", lambda *_: 1_000_000)
    with pytest.raises(ConfigError, match=r"matching\.rerank"):
        check(stage, "matching")


def test_features_of_the_user__further_columns_count(configure, run, people, tmp_path):
    features = tmp_path / "theirs.h5"
    features.write_bytes(b"1")
    lines = people.read_text().splitlines()
    config = configure(f"matching.features={features}")
    for visible in ("0.5", "0.6"):
        people.write_text("\n".join([f"{lines[0]},visible", *(f"{line},{visible}" for line in lines[1:])]) + "\n")
        assert run(config)[0] == ["eval"]
    assert run(config)[0] == []


def test_features_of_the_user__must_be_a_features_file(configure, tmp_path):
    features = tmp_path / "theirs.h5"
    features.write_bytes(b"1")
    config = configure(f"matching.features={features}")
    with pytest.raises(FormatError) as caught:
        check(Evaluate(config, Sources(config)), "features file")
    assert str(features) in str(caught.value)


def test_checkpoint_of_the_user__must_be_one(configure, tmp_path):
    path = tmp_path / "r.safetensors"
    path.write_bytes(b"<!DOCTYPE html>")
    config = configure(f"extract.checkpoint={path}")
    with pytest.raises(WeightsError) as caught:
        check(Extract(config, Sources(config)), "checkpoint")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("key", ["extract.checkpoint", "matching.features", "model.weights"])
def test_file_of_the_user__missing_is_named(configure, tmp_path, key):
    with pytest.raises(UserError) as caught:
        make_plan(configure(f"{key}={tmp_path / 'nowhere.pth'}"))
    assert "nowhere.pth" in str(caught.value)


def test_several_test_sets__count_for_extract_and_eval(configure, run, people, tmp_path):
    import shutil

    other = tmp_path / "more" / "people" / people.name
    shutil.copytree(people.parent, other.parent)
    config = configure(f"data.tests=['csv:{people}', 'csv:{other}']")
    run(config)
    cv2.imwrite(str(other.parent / "images" / "3_c1.png"), np.zeros((32, 16, 3), np.uint8))
    assert run(config)[0] == ["extract", "eval"]

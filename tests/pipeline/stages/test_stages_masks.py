import shutil

import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError, FormatError, UserError, WeightsError
from pipeline.parsing import files
from pipeline.stages.masks import Masks
from pipeline.stages.plan import make_plan
from pipeline.stages.sources import Sources

ALL = ["masks", "train", "extract", "eval"]


@pytest.fixture
def stage(configure):
    def make(*overrides):
        config = configure(*overrides)
        return Masks(config, Sources(config))

    return make


@pytest.fixture
def maps(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    return folder


def check(stage, what):
    return next(check for check in stage.checks() if check.what == what).run()


# Inputs


def test_inputs__parser_file_counts_by_content_and_not_by_place(configure, run, weights, tmp_path):
    run(configure())
    moved = shutil.move(weights, tmp_path / "elsewhere.onnx")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == []
    (tmp_path / "elsewhere.onnx.toml").write_text("label_set = 'atr-18'")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == ALL
    (tmp_path / "elsewhere.onnx").write_bytes(b"other weights")
    assert run(configure(f"masks.parser=onnx:{moved}"))[0] == ALL


def test_inputs__files_that_a_parser_file_refers_to_count(stage, weights):
    entry = b"\x0a\x08location\x12\x10parser.onnx.data"
    weights.write_bytes(b"graph " + entry + b" more")
    tensors, labels = weights.with_name("parser.onnx.data"), weights.with_name("mine.toml")
    tensors.write_bytes(b"1")
    labels.write_text("classes = ['a', 'b']")
    weights.with_name("parser.onnx.toml").write_text("label_set = 'mine.toml'")
    before = stage().provenance()
    assert stage().provenance() == before
    tensors.write_bytes(b"2")
    assert [each.key for each in before.diff(stage().provenance())] == ["input parser's file parser.onnx.data"]
    tensors.write_bytes(b"1")
    labels.write_text("classes = ['a', 'c']")
    assert [each.key for each in before.diff(stage().provenance())] == ["input parser's label set"]


def test_inputs__argument_of_an_installed_parser_counts(stage, tmp_path):
    assert stage("masks.parser=mine:small").provenance() == stage("masks.parser=mine:small").provenance()
    assert stage("masks.parser=mine:small").provenance() != stage("masks.parser=mine:large").provenance()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    before = stage(f"masks.parser=mine:{folder}").provenance()
    moved = folder.rename(tmp_path / "moved")
    assert stage(f"masks.parser=mine:{moved}").provenance() == before
    (moved / "weights.bin").write_bytes(b"2")
    assert stage(f"masks.parser=mine:{moved}").provenance() != before


@pytest.mark.parametrize(
    ("parser", "name"), [("builtin", "builtin"), ("schp:{weights}", "schp"), ("label-maps:{maps}", "label-maps")]
)
def test_inputs__version_of_the_parser_counts(stage, weights, maps, monkeypatch, parser, name):
    spec = f"masks.parser={parser.format(weights=weights, maps=maps)}"
    before = stage(spec).provenance()
    monkeypatch.setitem(files.VERSIONS, name, "raised")
    assert [each.key for each in before.diff(stage(spec).provenance())] == ["input parser version"]


def test_inputs__label_maps_count_by_content(stage, maps):
    (maps / "1_c1.png").write_bytes(b"1")
    (maps / "notes.txt").write_text("not a label map")
    spec = f"masks.parser=label-maps:{maps}"
    before = stage(spec).provenance()
    (maps / "notes.txt").write_text("changed")
    assert stage(spec).provenance() == before
    (maps / "1_c1.png").write_bytes(b"2")
    assert stage(spec).provenance() != before


def test_inputs__identities_do_not_count(configure, run, people):
    run(configure())
    people.write_text(people.read_text().replace("1_c1.png,1,", "1_c1.png,2,"))
    assert run(configure())[0] == ["train", "extract", "eval"]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("masks.parser=schp:{}", WeightsError),
        ("masks.parser=label-maps:{}", UserError),
        ("masks.grouping={}.toml", ConfigError),
        ("masks.file={}", FormatError),
    ],
)
def test_inputs__missing_file_is_named(configure, tmp_path, override, error):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(error) as caught:
        make_plan(configure(override.format(nowhere)))
    assert str(nowhere) in str(caught.value)


# Checks


def test_check__builtin_parser_loads(stage):
    assert "builtin" in check(stage("masks.parser=builtin", "masks.device=cpu"), "parser")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["masks.parser=nothing"], "nothing"),
        (["masks.parser=builtin", "masks.grouping=spred"], "spred"),
        (["masks.parser=builtin", "masks.label_set=atr-18"], "atr-18"),
    ],
)
def test_check__parser_names_what_is_wrong(stage, overrides, part):
    with pytest.raises(UserError) as caught:
        check(stage(*overrides, "masks.device=cpu"), "parser")
    assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><title>Google Drive</title>", b"weights"])
def test_check__parser_file_must_be_one(stage, tmp_path, content):
    path = tmp_path / "r.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        check(stage(f"masks.parser=schp:{path}", "masks.device=cpu"), "parser")
    assert caught.value.where == str(path)


def test_check__label_maps_must_be_found(stage, maps):
    spec = f"masks.parser=label-maps:{maps}"
    with pytest.raises(UserError) as caught:
        check(stage(spec), "label maps")
    assert "1_c1" in str(caught.value)
    (maps / "images").mkdir()
    cv2.imwrite(str(maps / "images" / "1_c1.png"), np.zeros((4, 4), np.uint8))
    assert "lip-20" in check(stage(spec), "label maps")
    with pytest.raises(ConfigError, match="label maps"):
        check(stage("masks.parser=label-maps"), "label maps")
    with pytest.raises(ConfigError) as caught:
        check(stage(spec, "masks.flip=true"), "label maps")
    assert caught.value.where == "masks.flip"


def test_check__missing_back_end_is_named(stage, monkeypatch):
    monkeypatch.setattr("pipeline.stages.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="dask"):
        check(stage("masks.backend=dask"), "back end")


def test_allows_rejected__only_if_configured(stage):
    assert not stage().allows_rejected
    assert stage("masks.allow_failed=true").allows_rejected

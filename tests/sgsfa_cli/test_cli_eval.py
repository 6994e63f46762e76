"""eval, search and compare on made-up features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.errors import DataError
from pipeline.formats.features import FeatureFile, FeatureHeader, FeatureWriter
from sgsfa_cli.main import app


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    count = 60
    pids = np.arange(count) % 6
    centres = rng.normal(size=(6, 7, 8))
    path = tmp_path_factory.mktemp("eval") / "features.h5"
    header = FeatureHeader(
        names=[f"{i}.jpg" for i in range(count)],
        pids=pids,
        camids=rng.integers(0, 3, count),
        splits=["query"] * 12 + ["gallery"] * 48,
        part_dim=8,
        global_dim=8,
        thresholds=np.full(7, 0.2),
        attributes={"data": "csv:toy", "flip": False},
    )
    parts = centres[pids] + rng.normal(size=(count, 7, 8))
    with FeatureWriter.begin(path, header) as writer:
        writer.append(parts, parts.mean(axis=1), rng.random((count, 7)))
        writer.finish()
    return path


def test_a_table_for_several_files(features: Path) -> None:
    text = run("eval", "--features", features, "--features", features, "--rule", "mean", "--rerank", "-q").output
    assert "toy-2" in text
    assert "mean rule, re-ranking" in text
    assert "without re-ranking" in text
    assert "shared parts against visibility ignored" in text


def test_json_out_and_against(features: Path, tmp_path: Path) -> None:
    run("eval", "-f", features, "--out", tmp_path / "out", "--rule", "all", "-q")
    assert (tmp_path / "out" / "queries.csv").is_file()
    printed = json.loads(
        run("eval", "-f", features, "--json", "-q", "--verification", "--against", tmp_path / "out").stdout
    )
    assert 0 < printed["tests"]["toy"]["metrics"]["mAP"] <= 1
    assert printed["against"][0]["differences"][0]["metric"] == "rank1"
    text = run("eval", "-f", features, "-q", "--no-breakdown", "--verification", "--against", tmp_path / "out").output
    assert "Against the earlier run" in text
    assert "true positive rate at a false positive rate: " in text
    # One test set among several finds its own earlier result, whatever the folder is called.
    text = run("eval", "-f", features, "-f", features, "-q", "--against", tmp_path / "out").output
    assert "not in the earlier run: toy-2" in text
    for name in ("x", "y"):
        shutil.copytree(tmp_path / "out", tmp_path / "other" / name, dirs_exist_ok=True)
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        (tmp_path / "other" / name / "result.json").write_text(json.dumps({**result, "test_set": name}))
    said = run("eval", "-f", features, "-q", "--against", tmp_path / "other", code=2).output
    assert "none of the test sets toy" in said


def test_a_configured_run_against_another_tells_test_sets_of_one_name_apart(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def artifact(folder: Path, rules: dict[str, str]) -> Path:
        for name, rule in rules.items():
            run("eval", "-f", features, "--out", folder / name, "--rule", rule, "-q")
        tests = {name: json.loads((folder / name / "result.json").read_text()) for name in rules}
        assert {result["test_set"] for result in tests.values()} == {"toy"}
        (folder / "result.json").write_text(json.dumps({"tests": tests}))
        return folder

    before = artifact(tmp_path / "before", {"toy": "shrunk", "toy-2": "all"})
    now = artifact(tmp_path / "now", {"toy": "shrunk", "toy-2": "mean"})

    def run_stages(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(stages=[SimpleNamespace(path=now)], rejected=())

    monkeypatch.setattr("pipeline.stages.run.run_stages", run_stages)
    printed = json.loads(run("eval", "--preset", "demo", "--json", "-q", "--against", before).stdout)
    assert [one["test_set"] for one in printed["against"]] == ["toy", "toy-2"]
    for one in printed["against"]:
        figure = next(difference for difference in one["differences"] if difference["metric"] == "mAP")
        earlier = json.loads((before / one["test_set"] / "result.json").read_text())
        assert figure["now"] == pytest.approx(printed["tests"][one["test_set"]]["metrics"]["mAP"])
        assert figure["before"] == pytest.approx(earlier["metrics"]["mAP"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flip"], "extracted otherwise"),
        (["--data", "folder:a", "--data", "folder:b"], "2 --data"),
        (["--rule", "shrink"], "did you mean"),
        (["--against", "nowhere"], "there is no such file or folder"),
    ],
)
def test_mistakes_are_explained(features: Path, arguments: list[str], said: str) -> None:
    assert said in run("eval", "-f", features, *arguments, code=2).output


def test_mistakes_cost_no_evaluation(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any, **__: Any) -> Any:
        raise AssertionError("evaluated all the same")

    monkeypatch.setattr("pipeline.evaluation.evaluate.measure", measure)
    run("eval", "-f", features, "--flip", code=2)
    run("eval", "-f", features, "--against", "nowhere", code=2)


def test_a_mistake_in_the_second_file_is_told_before_the_first_is_evaluated(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short paths, which the panel of an error does not break.
    monkeypatch.chdir(tmp_path)
    shutil.copy(features, "flipped.h5")
    with h5py.File("flipped.h5", "r+") as file:
        file.attrs["attributes"] = json.dumps({"data": "csv:toy", "flip": True})
    two = ("eval", "-f", features, "-f", "flipped.h5", "--out", "out", "-q")
    said = run(*two, "--no-flip", code=2).output
    assert "extracted otherwise" in said
    assert "flipped.h5" in said
    for name in ("0.jpg", "1.jpg"):
        Image.new("RGB", (16, 32)).save(name)
    said = run(*two, "--data", "folder:.", "--data", "folder:nowhere", code=2).output
    assert "nowhere" in said
    said = run("eval", "-f", features, "-f", "none.h5", "--out", "out", "-q", code=2).output
    assert "none.h5" in said
    assert not Path("out").exists()
    run(*two)
    assert Path("out/toy-2/result.json").is_file()


@pytest.mark.parametrize(
    ("configured", "option", "expected"),
    [
        ([], [], True),
        ([], ["off"], False),
        (["--set", "data.expect_counts=false"], [], False),
        (["--set", "data.expect_counts=false"], ["on"], True),
        (["--set", "data.expect_counts=true"], ["off"], False),
    ],
)
def test_counts_are_expected_as_the_option_says_and_without_it_as_configured(
    features: Path, monkeypatch: pytest.MonkeyPatch, configured: list[str], option: list[str], expected: bool
) -> None:
    asked = []

    def open_dataset(spec: str, *, expect_counts: bool) -> Any:
        asked.append(expect_counts)
        raise DataError("that is all that was to be known")

    monkeypatch.setattr("pipeline.datasets.registry.open_dataset", open_dataset)
    given = [part for value in option for part in ("--expect-counts", value)]
    run("eval", "-f", features, "--data", "market1501:x", *configured, *given, code=2)
    assert asked == [expected]


def test_options_that_need_features() -> None:
    assert "goes with --features" in run("eval", "--out", "x", "--preset", "demo", code=2).output


@pytest.fixture
def embedded(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding an image takes a network; here it looks the image up among the features."""
    loaded = FeatureFile.open(features).load()

    def embed(paths: list[Path], checkpoint: Path, config: Any) -> Any:
        return loaded.select(np.array([int(path.stem) for path in paths]))

    monkeypatch.setattr("pipeline.features.extract.embed", embed)


@pytest.mark.usefixtures("embedded")
def test_search_and_compare(features: Path) -> None:
    arguments = ("search", "0.jpg", "1.jpg", "--gallery", features, "--checkpoint", "m.safetensors", "-k", 3, "-q")
    found = json.loads(run(*arguments, "--json").stdout)["found"]
    assert [len(one["hits"]) for one in found] == [3, 3]
    assert found[0]["hits"][0]["pid"] == 0
    text = run(*arguments).output
    assert "1.jpg (visible:" in text
    pair = json.loads(run("compare", "0.jpg", "12.jpg", "--checkpoint", "m.safetensors", "--json").stdout)
    assert pair["parts"][-1]["name"] == "whole body"
    assert "distance" in run("compare", "0.jpg", "12.jpg", "--checkpoint", "m.safetensors", "--rule", "mean").output


@pytest.mark.parametrize("flip", [False, True])
def test_a_search_looks_at_its_images_as_the_gallery_was_looked_at(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    gallery = tmp_path / "gallery.h5"
    shutil.copy(features, gallery)
    with h5py.File(gallery, "r+") as file:
        attributes = json.loads(file.attrs["attributes"])
        file.attrs["attributes"] = json.dumps(attributes | {"flip": flip})
    asked = []

    def embed(paths: Any, checkpoint: Path, config: Any) -> Any:
        asked.append(config.flip)
        raise DataError("seen")

    monkeypatch.setattr("pipeline.features.extract.embed", embed)
    run("search", "0.jpg", "--gallery", gallery, "--checkpoint", "m.safetensors", "-q", code=2)
    assert asked == [flip]


def test_intervals_have_a_table_of_their_own(features: Path) -> None:
    text = run("eval", "-f", features, "-q", "--no-breakdown", "--bootstrap", "50").output
    assert "95 % interval" in text
    line = next(line for line in text.splitlines() if line.split()[:2] == ["toy", "mAP"])
    low, high = (float(number) for number in line.split("[")[1].rstrip(" ]").split(","))
    assert low <= float(line.split()[2]) <= high
    assert "95 %" not in run("eval", "-f", features, "-q", "--no-breakdown").output

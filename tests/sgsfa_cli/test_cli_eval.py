"""eval, search and compare on made-up features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.errors import DataError
from pipeline.formats.feature_file import FeatureFile
from pipeline.formats.features import Features
from pipeline.formats.provenance import Provenance
from pipeline.formats.results import load_results, save_results
from sgsfa_cli.main import app
from tests.helpers.features import saved


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def write_features(path: Path, **record: Any) -> Path:
    rng = np.random.default_rng(0)
    count = 60
    pids = np.arange(count) % 6
    parts = rng.normal(size=(6, 7, 8))[pids] + rng.normal(size=(count, 7, 8))
    features = Features.from_arrays(
        parts,
        parts.mean(axis=1),
        rng.random((count, 7)),
        thresholds=np.full(7, 0.2),
        names=[f"{i}.jpg" for i in range(count)],
        pids=pids,
        camids=rng.integers(0, 3, count),
        splits=["query"] * 12 + ["gallery"] * 48,
        provenance=Provenance({"data": "csv:toy", "flip": False} | record),
    )
    return saved(path, features)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("eval") / "features.h5")


def test_eval__one_table_for_several_files(features: Path) -> None:
    text = run("eval", "--features", features, "--features", features, "--rule", "mean", "--rerank", "-q").output
    for part in ("toy-2", "rule mean, re-ranking", "without re-ranking", "visibility ignored"):
        assert part in text


def test_eval__out_json_and_against(features: Path, tmp_path: Path) -> None:
    run("eval", "-f", features, "--out", tmp_path / "out", "--rule", "all", "-q")
    assert (tmp_path / "out" / "queries.csv").is_file()
    arguments = ("eval", "-f", features, "-q", "--verification", "--against", tmp_path / "out")
    printed = json.loads(run(*arguments, "--json").stdout)
    assert 0 < printed["tests"]["toy"]["metrics"]["mAP"] <= 1
    assert printed["against"][0]["differences"][0]["metric"] == "rank1"
    text = run(*arguments, "--no-breakdown").output
    for part in ("Difference", "true positive rate at a false positive rate"):
        assert part in text
    text = run("eval", "-f", features, "-f", features, "-q", "--against", tmp_path / "out").output
    assert "not in the earlier run: toy-2" in text


def test_eval__stored_results_are_the_printed_ones(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = json.loads(run("eval", "-f", features, "-f", features, "--out", out, "--json", "-q").stdout)
    stored = load_results(out / "result.json")
    assert list(stored) == ["toy", "toy-2"]
    assert {name: result.to_json() for name, result in stored.items()} == printed["tests"]
    assert load_results(out / "toy-2" / "result.json") == {"toy-2": stored["toy-2"]}


def test_eval__test_sets_of_a_run_against_an_earlier_run(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def artifact(folder: Path, rules: dict[str, str]) -> Path:
        results = []
        for name, rule in rules.items():
            out = folder / name
            run("eval", "-f", features, "--out", out, "--rule", rule, "-q")
            results += load_results(out / "result.json").values()
        save_results(
            folder / "result.json", [replace(one, test_set=name) for one, name in zip(results, rules, strict=True)]
        )
        return folder

    before = artifact(tmp_path / "before", {"toy": "shrunk", "toy-2": "all"})
    now = artifact(tmp_path / "now", {"toy": "shrunk", "toy-2": "mean"})

    def run_stages(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(stages=[SimpleNamespace(path=now)], rejected=())

    monkeypatch.setattr("pipeline.stages.run.run_stages", run_stages)
    printed = json.loads(run("eval", "--preset", "demo", "--json", "-q", "--against", before).stdout)
    assert [one["test_set"] for one in printed["against"]] == ["toy", "toy-2"]
    earlier = load_results(before / "result.json")
    for one in printed["against"]:
        figure = next(difference for difference in one["differences"] if difference["metric"] == "mAP")
        assert figure["now"] == pytest.approx(printed["tests"][one["test_set"]]["metrics"]["mAP"])
        assert figure["before"] == pytest.approx(earlier[one["test_set"]].metrics.mAP)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--flip"], "--flip"),
        (["--data", "folder:a", "--data", "folder:b"], "2 --data"),
        (["--rule", "shrink"], "shrunk"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_eval__mistakes_cost_no_evaluation(
    features: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    def evaluate(*_: Any, **__: Any) -> Any:
        raise AssertionError("evaluated")

    monkeypatch.setattr("pipeline.evaluation.evaluate.evaluate", evaluate)
    assert named in run("eval", "-f", features, *arguments, code=2).output


def test_eval__a_mistake_in_the_second_file_costs_no_evaluation(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short paths, which the panel of an error does not break.
    monkeypatch.chdir(tmp_path)
    write_features(Path("flipped.h5"), flip=True)
    two = ("eval", "-f", features, "-f", "flipped.h5", "--out", "out", "-q")
    assert "flipped.h5" in run(*two, "--no-flip", code=2).output
    for name in ("0.jpg", "1.jpg"):
        Image.new("RGB", (16, 32)).save(name)
    assert "nowhere" in run(*two, "--data", "folder:.", "--data", "folder:nowhere", code=2).output
    assert "none.h5" in run("eval", "-f", features, "-f", "none.h5", "--out", "out", "-q", code=2).output
    assert not Path("out").exists()
    run(*two)
    assert Path("out/toy-2/result.json").is_file()


def test_eval__npz(features: Path, tmp_path: Path) -> None:
    Features.load(features).save(tmp_path / "f.npz")
    one, other = (json.loads(run("eval", "-f", path, "--json", "-q").stdout) for path in (features, tmp_path / "f.npz"))
    assert one["tests"]["toy"]["metrics"] == other["tests"]["toy"]["metrics"]


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
def test_eval__expect_counts_by_option_else_configuration(
    features: Path, monkeypatch: pytest.MonkeyPatch, configured: list[str], option: list[str], expected: bool
) -> None:
    asked = []

    def open_dataset(spec: str, *, expect_counts: bool) -> Any:
        asked.append(expect_counts)
        raise DataError("stop here")

    monkeypatch.setattr("pipeline.datasets.registry.open_dataset", open_dataset)
    given = [part for value in option for part in ("--expect-counts", value)]
    run("eval", "-f", features, "--data", "market1501:x", *configured, *given, code=2)
    assert asked == [expected]


def test_eval__options_that_need_features() -> None:
    assert "--features" in run("eval", "--out", "x", "--preset", "demo", code=2).output


@pytest.fixture
def embedded(features: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replace the network by a look-up among the features; returns the flips that were asked for."""
    loaded = Features.load(features)
    flips = []

    def embed(paths: list[Path], checkpoint: Path, config: Any) -> Features:
        flips.append(config.flip)
        return loaded.select(np.array([int(Path(path).stem) for path in paths]))

    monkeypatch.setattr("pipeline.features.extract.embed", embed)
    return flips


@pytest.mark.usefixtures("embedded")
def test_search__features_file(features: Path) -> None:
    arguments = ("search", "0.jpg", "1.jpg", "--gallery", features, "--checkpoint", "m.safetensors", "-k", 3, "-q")
    found = json.loads(run(*arguments, "--json").stdout)["queries"]
    assert [len(one["nearest"]) for one in found] == [3, 3]
    assert found[0]["nearest"][0]["pid"] == 0
    assert found[0]["nearest"][0]["name"] in run(*arguments).output
    assert json.loads(run(*arguments, "--json", "--approximate").stdout)["queries"] == found


@pytest.mark.usefixtures("embedded")
def test_search__folder(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Features.load(features)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12, 20):
        Image.new("RGB", (16, 32)).save(folder / f"{i}.jpg")

    def embed_records(dataset: Any, records: Any, checkpoint: Path, config: Any, **_: Any) -> Features:
        return loaded.select(np.array([int(Path(record.path).stem) for record in records]))

    monkeypatch.setattr("pipeline.features.extract.embed_records", embed_records)
    arguments = ("search", "0.jpg", "--gallery", f"folder:{folder}", "--checkpoint", "m.safetensors", "-q", "--json")
    found = json.loads(run(*arguments).stdout)
    assert found["gallery_images"] == 8
    assert {one["name"] for one in found["queries"][0]["nearest"]} == {f"{i}.jpg" for i in range(12, 20)}


def test_compare__shares_add_up(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Features.load(features)
    network = SimpleNamespace(embed=lambda paths: loaded.select(np.array([int(path.stem) for path in paths])))
    monkeypatch.setattr("pipeline.features.embedder.Embedder.load", lambda *_: network)
    arguments = ("compare", "0.jpg", "12.jpg", "--checkpoint", "m.safetensors")
    pair = json.loads(run(*arguments, "--json").stdout)
    assert sum(part["share"] for part in pair["parts"]) == pytest.approx(1)
    assert f"{pair['distance']:.3f}" in run(*arguments).output


@pytest.mark.parametrize("flip", [False, True])
def test_search__queries_are_embedded_as_the_gallery_was(tmp_path: Path, embedded: list[bool], flip: bool) -> None:
    gallery = write_features(tmp_path / "gallery.h5", flip=flip)
    assert FeatureFile.open(gallery).provenance.values["flip"] is flip
    run("search", "0.jpg", "--gallery", gallery, "--checkpoint", "m.safetensors", "-q", code=2 if flip else 0)
    assert embedded == [flip]


def test_eval__intervals_have_a_table(features: Path) -> None:
    text = run("eval", "-f", features, "-q", "--no-breakdown", "--bootstrap", "50").output
    line = next(line for line in text.splitlines() if line.split()[:2] == ["toy", "mAP"])
    mean, low, high = (float(number) for number in line.split()[2:5])
    assert low <= mean <= high
    assert "95 %" not in run("eval", "-f", features, "-q", "--no-breakdown").output

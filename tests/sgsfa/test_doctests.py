"""Every public name has examples, which run in a folder with the files that they name."""

from __future__ import annotations

import csv
import doctest
import importlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

import sgsfa
from tests.helpers.training import make_masks, make_people

SLOW = {"build_masks", "export", "run", "train"}
PUBLIC = sorted({*sgsfa.__all__} - {"__version__"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a data set of them, its masks, and its features by the built-in network."""
    root = tmp_path_factory.mktemp("examples")
    dataset = make_people(root, train=2)
    (root / "photos").mkdir()
    for name, record in zip(("a", "b", "photos/a", "photos/b", "photos/c", "photos/d"), dataset.records, strict=False):
        Image.open(root / record.path).save(root / f"{name}.jpg")
    with (root / "dataset.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "pid", "camid", "split"))
        writer.writerows((each.path, each.pid, each.camid, each.split) for each in dataset.records)
    make_masks(root / "masks.h5", dataset)
    sgsfa.extract(root / "features.h5", f"csv:{root / 'dataset.csv'}", device="cpu")
    return root


@pytest.mark.parametrize(
    "name", ["sgsfa", *(pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PUBLIC)]
)
def test_doctests__of_every_public_name(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    thing = sgsfa if name == "sgsfa" else getattr(sgsfa, name)
    surroundings = {} if thing is sgsfa else vars(importlib.import_module(thing.__module__))
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(surroundings))
        if test.examples
    ]
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0

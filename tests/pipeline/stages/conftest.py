import os
import time

import pytest

from pipeline.config_file import load_config
from pipeline.errors import Rejected
from pipeline.stages.plan import make_plan
from pipeline.stages.run import run_stages
from tests.helpers.stages import FakeStages, write_dataset


@pytest.fixture
def people(tmp_path):
    table = write_dataset(tmp_path / "people")
    # Old enough for the cache of hashes to trust the times.
    old = time.time() - 100
    for path in (tmp_path / "people").rglob("*"):
        os.utime(path, (old, old))
    return table


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "parser.onnx"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def configure(tmp_path, people, weights):
    """A configuration on the small data set; further overrides as arguments."""

    def make(*overrides):
        base = [
            f"data.source=csv:{people}",
            f"artifacts={tmp_path / 'artifacts'}",
            f"masks.parser=onnx:{weights}",
            "name=small",
            "train.identities=2",
        ]
        return load_config(overrides=[*base, *overrides])

    return make


@pytest.fixture
def fakes():
    return FakeStages()


@pytest.fixture
def run(fakes):
    """Run the fake stages; returns the names of those that ran, and the report."""

    def execute(config, **options):
        report = run_stages(config, stages=fakes.stages, **options)
        return fakes.took(), report

    return execute


@pytest.fixture
def states():
    """The planned stages of a configuration, by name."""

    def plan(config):
        return {entry.name: entry for entry in make_plan(config).stages}

    return plan


@pytest.fixture
def one_rejected():
    return (Rejected("images/1_c1.png", "truncated"),)

"""A small data set of real files, and the real graph with bodies that only write down that they ran."""

import dataclasses
import os
import time

import cv2
import numpy as np
import pytest

from pipeline.config import load_config
from pipeline.errors import Rejected
from pipeline.runtime.files import write_json
from pipeline.stages.graph import STAGES
from pipeline.stages.stage import StageReport


def write_dataset(folder, seed=0):
    """A csv data set: 2 identities to train on, 2 to test on, in 2 cameras."""
    draw = np.random.default_rng(seed)
    rows = ["path,pid,camid,split"]
    for pid, splits in ((1, "train"), (2, "train"), (3, "test"), (4, "test")):
        for camera in (1, 2):
            name = f"images/{pid}_c{camera}.png"
            (folder / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), draw.integers(0, 255, (32, 16, 3), dtype=np.uint8))
            split = splits if splits == "train" else ("query" if camera == 1 else "gallery")
            rows.append(f"{name},{pid},{camera},{split}")
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    return folder / "people.csv"


@pytest.fixture
def people(tmp_path):
    table = write_dataset(tmp_path / "people")
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


class Fakes:
    """The real stages with bodies that note their names, and do what a test puts in their place."""

    def __init__(self):
        self.ran = []
        self.rejected = ()
        self.bodies = {}

    @property
    def stages(self):
        return tuple(dataclasses.replace(stage, build=self._body(stage.name)) for stage in STAGES)

    def took(self):
        """The stages that ran since the last time this was asked."""
        ran, self.ran = self.ran, []
        return ran

    def _body(self, name):
        def body(context):
            self.ran.append(name)
            if name in self.bodies:
                return self.bodies[name](context)
            (context.out / "made.txt").write_text(f"{name}")
            if name == "eval":
                write_json(context.out / "result.json", {"columns": ["mAP>"], "rows": [["40 %"]], "tests": {}})
            if name == "masks":
                return StageReport(total=4, rejected=tuple(self.rejected), figures={"images_per_second": 12.5})
            return StageReport()

        return body


@pytest.fixture
def fakes():
    return Fakes()


@pytest.fixture
def one_rejected():
    return (Rejected("images/1_c1.png", "truncated"),)

"""A small data set of real files, and the real stages whose work only records that it was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import Rejected
from pipeline.formats.results import EvaluationResult, Scores, results_json
from pipeline.runtime.files import write_json
from pipeline.runtime.progress import Progress
from pipeline.stages.plan import STAGES
from pipeline.stages.stage import Check, Stage, StageReport

_SCORES = Scores(0.75, 1.0, 1.0, 1.0, 0.5, 0.25, 2, 2)
_PROTOCOL = {
    "rule": "shrunk",
    "visibility": "hard",
    "metric": "cosine",
    "flip": False,
    "query_expansion": 0,
    "rerank": False,
    "average_precision": "mean",
}
RESULT = EvaluationResult("people", _SCORES, _PROTOCOL, {}, {}, histogram=replace(_SCORES, rank1=0.125))
RESULTS = results_json([RESULT])
"""Content of `result.json` of a run."""

Work = Callable[[Stage, Path], StageReport]


def write_dataset(folder: Path, seed: int = 0) -> Path:
    """Write a csv data set: 2 identities to train on, 2 to test on, each in 2 cameras; return its table."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = ["path,pid,camid,split"]
    for pid, splits in ((1, "train"), (2, "train"), (3, "test"), (4, "test")):
        for camera in (1, 2):
            name = f"images/{pid}_c{camera}.png"
            cv2.imwrite(str(folder / name), draw.integers(0, 255, (32, 16, 3), dtype=np.uint8))
            split = splits if splits == "train" else ("query" if camera == 1 else "gallery")
            rows.append(f"{name},{pid},{camera},{split}")
    (folder / "people.csv").write_text("\n".join(rows) + "\n")
    return folder / "people.csv"


class FakeStages:
    """The real stages, whose `run` records the stage and does what a test puts in its place.

    Attributes:
        ran: Names of the stages that ran since `took` was called.
        rejected: What the stage `masks` rejects.
        work: What a stage does instead, by name.
        checks: Names of the checks that are not replaced by nothing; the files of these tests are not real ones.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.rejected: tuple[Rejected, ...] = ()
        self.work: dict[str, Work] = {}
        self.checks: set[str] = {"training images", "test images people", "matches people", "device", "batches"}
        self.stages = tuple(self._faked(kind) for kind in STAGES)

    def took(self) -> list[str]:
        """Return the stages that ran since the last call."""
        ran, self.ran = self.ran, []
        return ran

    def _faked(self, kind: type[Stage]) -> type[Stage]:
        fakes = self

        def run(self: Stage, folder: Path, _progress: Progress) -> StageReport:
            return fakes._run(self, folder)

        def checks(self: Stage) -> Iterator[Check]:
            return (check for check in kind.checks(self) if check.what in fakes.checks)

        members: dict[str, Any] = {"run": run, "checks": checks}
        return type(kind.__name__, (kind,), members)

    def _run(self, stage: Stage, folder: Path) -> StageReport:
        self.ran.append(stage.name)
        if stage.name in self.work:
            return self.work[stage.name](stage, folder)
        (folder / "made.txt").write_text(stage.name)
        if stage.result_file is not None:
            write_json(folder / stage.result_file, RESULTS)
        if stage.name == "masks":
            return StageReport(total=4, rejected=self.rejected, figures={"images_per_second": 12.5})
        return StageReport()

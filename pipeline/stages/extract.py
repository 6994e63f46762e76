"""The stage `extract`: features of the queries and the gallery of every test set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import Rejected, WeightsError
from pipeline.formats.checkpoint import read_meta, resolve_checkpoint
from pipeline.runtime.progress import Progress
from pipeline.stages.checks import check_device
from pipeline.stages.sources import RENDERED
from pipeline.stages.stage import Check, Stage, StageReport, section_settings
from pipeline.stages.train import CHECKPOINT

FEATURES_FILE = "features.h5"

_BYTES_PER_IMAGE = 16_000
"""Of seven part features of 256 numbers and a global feature of 2,048."""


class Extract(Stage):
    """Compute the features of every test set: `<test set>/features.h5`."""

    name = "extract"
    distributed = True

    def requires(self) -> tuple[str, ...]:
        """Return `train`, unless a checkpoint is given, and `synth` for rendered images."""
        synth = ("synth",) if RENDERED in self.sources.test_specs else ()
        return synth + (("train",) if self.config.extract.checkpoint is None else ())

    def settings(self) -> Mapping[str, Any]:
        """Return the section `extract`."""
        return section_settings("extract", self.config.extract, "checkpoint")

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of the checkpoint and the test images."""
        sources, checkpoint = self.sources, self._given()
        if checkpoint is None:
            return {"checkpoint": sources.fingerprints["train"], **sources.test_images()}
        return {"checkpoint": sources.file(checkpoint, "checkpoint", WeightsError), **sources.test_images()}

    def _given(self) -> Path | None:
        """Return the checkpoint that the configuration names."""
        checkpoint = self.config.extract.checkpoint
        return None if checkpoint is None else resolve_checkpoint(checkpoint)

    def checks(self) -> Iterator[Check]:
        """Yield the images of each test set, the device and the checkpoint."""
        extract = self.config.extract
        for test in self.sources.tests():
            yield Check(f"test images {test.name}", partial(self.sources.describe_test, test))
        yield Check("device", lambda: check_device(extract.device, extract.amp, distributed=True))
        if extract.checkpoint is not None:
            yield Check("checkpoint", partial(self._check_checkpoint, extract.checkpoint))

    @staticmethod
    def _check_checkpoint(checkpoint: Path) -> str:
        meta = read_meta(resolve_checkpoint(checkpoint))
        return f"{meta.model.kind}, {meta.model.backbone}, trained on {meta.trained_on}"

    def disk_bytes(self) -> int:
        """Return about how much the features take."""
        tests = self.sources.tests()
        return sum(self.sources.count_images(test.spec, "query", "gallery") for test in tests) * _BYTES_PER_IMAGE

    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Extract one test set after the other."""
        from pipeline.features.extract import extract
        from pipeline.runtime.process_group import rank_info

        config, sources = self.config, self.sources
        checkpoint = self._given() or sources.folder("train") / CHECKPOINT
        rejected: list[Rejected] = []
        total, rates = 0, {}
        tests = sources.tests()
        for test in tests:
            if rank_info().is_main:
                (folder / test.name).mkdir(exist_ok=True)
            report = extract(
                folder / test.name / FEATURES_FILE,
                dataset=sources.open(test.spec),
                records=sources.test_records(test.spec),
                checkpoint=checkpoint,
                config=config.extract,
                progress=progress,
            )
            # Two data sets may use the same names.
            prefix = f"{test.name}: " if len(tests) > 1 else ""
            rejected += [Rejected(prefix + each.path, each.reason) for each in report.failed]
            total += report.total
            rates[test.name] = report.images_per_second
        return StageReport(total=total, rejected=tuple(rejected), figures={"images_per_second": rates})

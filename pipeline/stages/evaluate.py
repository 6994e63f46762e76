"""The stage `eval`: rankings and metrics of every test set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, FormatError
from pipeline.runtime.progress import Progress
from pipeline.stages.checks import check_device
from pipeline.stages.extract import FEATURES_FILE
from pipeline.stages.report import REPORT_FILE, Evaluated, report_of_tests
from pipeline.stages.sources import RENDERED, TestSet
from pipeline.stages.stage import Check, Stage, StageReport, section_settings

RESULT_FILE = "result.json"

_BYTES_PER_IMAGE = 4 * (7 * 256 + 2048)


class Evaluate(Stage):
    """Rank and measure: a folder for each test set, and all results in one `result.json`."""

    name = "eval"
    result_file = RESULT_FILE

    def requires(self) -> tuple[str, ...]:
        """Return `extract`, unless a features file is given."""
        return ("extract",) if self.config.matching.features is None else ()

    def settings(self) -> Mapping[str, Any]:
        """Return the section `matching`."""
        return section_settings("matching", self.config.matching, "features")

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of the features, and of images and further columns that results are split by."""
        sources, features = self.sources, self.config.matching.features
        if features is None:
            found = {"features": sources.fingerprints["extract"]}
        else:
            found = {"features": sources.file(features, "features file", FormatError)}
            if self._tests():
                found |= sources.test_images()
        for test in self._tests():
            if (attributes := sources.attributes(test.spec)) is not None:
                found[f"attributes {test.name}"] = attributes
        return found

    def _tests(self) -> tuple[TestSet, ...]:
        """Return the test sets; for a given features file the only one named, if exactly one is.

        `rendered` is the default source, so it does not describe where such a file comes from.
        """
        if self.config.matching.features is None:
            return self.sources.tests()
        specs = self.sources.test_specs
        return self.sources.tests() if len(specs) == 1 and specs[0] != RENDERED else ()

    def checks(self) -> Iterator[Check]:
        """Yield the device, queries that can match, and a features file."""
        yield Check("device", lambda: check_device(self.config.matching.device))
        if (features := self.config.matching.features) is not None:
            yield Check("features file", partial(self._check_features, features))
            return
        for test in self._tests():
            yield Check(f"matches {test.name}", partial(self.sources.describe_test, test, matches=True))
        yield Check("matching", self._check_options)

    def _check_options(self) -> str:
        from pipeline.evaluation.evaluate import MEMORY_BYTES, refuse_in_streaming

        gallery = max(self.sources.count_images(test.spec, "gallery") for test in self._tests())
        if gallery * _BYTES_PER_IMAGE > MEMORY_BYTES:
            refuse_in_streaming(self.config.matching)
        return f"rule {self.config.matching.rule}, {self.config.matching.metric} distance"

    def _check_features(self, path: Path) -> str:
        from pipeline.formats.feature_file import open_features

        file = open_features(path)
        counts = {split: len(file.split_rows(split)) for split in ("query", "gallery")}
        for split, count in counts.items():
            if not count:
                expected = "features of a query and a gallery"
                raise DataError(f"features file has no {split} images", where=path, expected=expected)
        return f"{counts['query']:,} queries, {counts['gallery']:,} gallery images"

    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Evaluate one test set after the other."""
        from pipeline.evaluation.report.page import save
        from pipeline.formats.results import save_results

        results, tests = [], []
        for test in self.evaluations():
            found = test.evaluated(self.config.matching, progress)
            results.append(found.save(folder / test.name, test.dataset))
            tests.append(replace(test, evaluation=found))
        save_results(folder / RESULT_FILE, results)
        if self.config.matching.report:
            report = report_of_tests(tests, self.config, self.sources.folders.get("train"), progress=progress)
            save(report, folder / REPORT_FILE)
        return StageReport()

    def evaluations(self) -> list[Evaluated]:
        """Return the test sets with their features, not yet evaluated."""
        given, tests = self.config.matching.features, self._tests()
        if given is not None and not tests:
            return [Evaluated(given, name=given.stem)]
        features = {test.name: given or self.sources.folder("extract") / test.name / FEATURES_FILE for test in tests}
        return [Evaluated(features[test.name], self.sources.open(test.spec), name=test.name) for test in tests]

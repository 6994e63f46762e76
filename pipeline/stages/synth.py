"""The stage `synth`: rendered identities instead of photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.runtime.progress import Progress
from pipeline.stages.sources import SYNTH_FOLDER
from pipeline.stages.stage import Check, Stage, StageReport, section_settings

_BYTES_PER_PIXEL = 1.0
"""Of a rendered JPEG and its label map together, rounded up."""


class Synth(Stage):
    """Render a data set."""

    name = "synth"

    def settings(self) -> Mapping[str, Any]:
        """Return the section `synth`."""
        return section_settings("synth", self.config.synth)

    def checks(self) -> Iterator[Check]:
        """Yield whether the renderer is installed."""
        yield Check("renderer", self._renderer)

    def _renderer(self) -> str:
        from sgsfa_synth.dataset import render_dataset  # noqa: F401

        synth = self.config.synth
        return f"{synth.ids} identities, {synth.cameras} cameras, {synth.width}x{synth.height} pixels"

    def disk_bytes(self) -> int:
        """Return about how much the rendered images take."""
        synth = self.config.synth
        return int(synth.ids * synth.cameras * synth.shots * synth.height * synth.width * _BYTES_PER_PIXEL)

    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Render."""
        from sgsfa_synth.dataset import render_dataset

        # A folder of its own, because the renderer refuses one that holds other files.
        render_dataset(folder / SYNTH_FOLDER, self.config.synth, progress=progress)
        return StageReport()

"""The interface of a stage: what decides its output, what can be checked beforehand, and the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.config import RunConfig, Section
from pipeline.errors import Rejected, UserError
from pipeline.formats.provenance import Provenance
from pipeline.runtime.progress import Progress
from pipeline.stages.sources import Sources

FILE = "FILE"
"""Value of a setting that names a file: its content, which is an input, decides, and not its path."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """Result of a stage: its number of inputs, those that could not be used, and figures for the manifest."""

    total: int = 0
    rejected: tuple[Rejected, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that can be verified in seconds; `run` returns what was found, as in `12,936 of 751 identities`."""

    what: str
    run: Callable[[], str]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of a check: `detail` describes what was found, or `error` what is wrong."""

    stage: str
    what: str
    detail: str = ""
    error: UserError | None = None


class Stage(ABC):
    """One step from images to metrics.

    Two runs of a stage with equal `settings` and `inputs` give equal output, so these are its provenance.

    Attributes:
        name: Name on the command line and of its folder in the store.
        format_version: Raised when the same settings and inputs give another output than before.
        distributed: Under torchrun all ranks run it; the others wait while rank 0 runs a stage without it.
        result_file: JSON file of its artifact with results for the user, if it has any.
        allow_key: Configuration key that accepts rejected inputs, of a stage after which they stop the run.
        continue_key: Configuration key that takes over the result of other settings, where a stage can.
    """

    name: ClassVar[str]
    format_version: ClassVar[int] = 1
    distributed: ClassVar[bool] = False
    result_file: ClassVar[str | None] = None
    allow_key: ClassVar[str | None] = None
    continue_key: ClassVar[str | None] = None

    def __init__(self, config: RunConfig, sources: Sources) -> None:
        self.config = config
        self.sources = sources

    def requires(self) -> tuple[str, ...]:
        """Return the names of the stages whose artifacts it reads."""
        return ()

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return the configuration values that decide the output, by dotted key."""

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of everything else that decides the output, by name.

        Raises:
            UserError: An input is missing or cannot be read.
        """
        return {}

    def provenance(self) -> Provenance:
        """Return everything that decides the output, as one record."""
        inputs = {f"input {name}": value for name, value in self.inputs().items()}
        return Provenance.flatten(
            {"stage": self.name, "format version": self.format_version, **self.settings(), **inputs}
        )

    def checks(self) -> Iterator[Check]:
        """Yield what can be verified before any stage of the run starts; rendered images do not exist yet then."""
        yield from ()

    def disk_bytes(self) -> int:
        """Return about how much the stage writes; 0 if that is little or unknown."""
        return 0

    @property
    def allows_rejected(self) -> bool:
        """Whether rejected inputs are accepted; if not, they are reported, and stop the run if it has `allow_key`."""
        return False

    @abstractmethod
    def run(self, folder: Path, progress: Progress) -> StageReport:
        """Write the output into `folder`, which may hold the unfinished work of an interrupted run."""


def section_settings(name: str, section: Section, *omitted: str) -> dict[str, Any]:
    """Return the values of a section that decide an output, by dotted key."""
    table = section.model_dump(mode="json")
    return {f"{name}.{key}": table[key] for key in section.decisive_fields() if key not in omitted}

"""What an artifact says about itself: `manifest.json`."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.runtime.files import read_json, sha256_file, write_json
from pipeline.version import __version__

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class NewerManifestError(ArtifactError):
    """A manifest was written by a newer version of sgsfa."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        stage: The stage that made the artifact.
        name: Name of the run.
        fingerprint: Of everything that decides the content.
        decisive: The configuration that the stage read, by dotted key.
        inputs: Fingerprint of each input.
        started: When the first session began, ISO 8601 with time zone.
        finished: When it was published.
        seconds: Duration of the last session.
        sessions: 1, or more if it was interrupted and resumed.
        versions: Of Python, the libraries that compute, and sgsfa.
        git: Commit and whether the tree was changed, when sgsfa runs from a checkout.
        files: Every file but this one, by POSIX path relative to the artifact.
        extra: What else the stage has to say (its full configuration, figures).
        built_from: `finished` of the artifacts that it was made from, by stage; empty in older manifests. An artifact
            that was built anew since has another one.
        format_version: Of this file.
    """

    stage: str
    name: str
    fingerprint: str
    decisive: Mapping[str, Any]
    inputs: Mapping[str, str]
    started: str
    finished: str
    seconds: float
    sessions: int
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    files: Mapping[str, FileEntry]
    extra: Mapping[str, Any] = field(default_factory=dict)
    built_from: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def is_from(self, built_from: Mapping[str, str]) -> bool:
        """Whether the artifact was made from those that `built_from` names, as far as both say."""
        return all(built_from.get(stage, finished) == finished for stage, finished in self.built_from.items())

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        write_json(folder / MANIFEST, asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises:
        ArtifactError: It is missing, broken, or of a newer version of sgsfa.
    """
    path = folder / MANIFEST
    try:
        table = read_json(path)
        version = table["format_version"]
        if version > FORMAT_VERSION:
            raise NewerManifestError(
                f"the artifact was written by a newer sgsfa (manifest version {version})",
                where=path,
                expected=f"manifest version {FORMAT_VERSION} or older",
                hint="update sgsfa, or use another artifacts folder",
            )
        files = {name: FileEntry(**entry) for name, entry in table.pop("files").items()}
        return Manifest(files=files, **table)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"the manifest cannot be read: {error}", where=path, hint="delete the folder; the stage makes it anew"
        ) from error


def describe_files(folder: Path, *, besides: str) -> dict[str, FileEntry]:
    """Size and hash of every file under `folder` but the manifest and `besides`, by relative POSIX path, sorted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, besides):
            found[name] = FileEntry(path.stat().st_size, sha256_file(path))
    return found


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"sgsfa": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "h5py", "numba"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    opencv = next((name for name in ("opencv-python-headless", "opencv-python") if _installed(name)), None)
    if opencv is not None:
        found["opencv"] = metadata.version(opencv)
    return found | {"platform": platform.platform()}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def git_state() -> Mapping[str, Any] | None:
    """Commit of the checkout that this code lies in, and whether it was changed; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed copy may lie inside some other project's checkout (its .venv), which says nothing about us.
        if not git("ls-files", "--", Path(__file__).name):
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", ".."))}
    except (OSError, subprocess.SubprocessError):
        return None

"""`manifest.json`: what an artifact was built from, when, by what, and the hash of each of its files."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError
from pipeline.formats.provenance import Provenance, fingerprint
from pipeline.runtime.files import read_json, sha256_file, write_json
from pipeline.version import __version__

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

_LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "numba", "opencv-python-headless", "opencv-python")


class UnusableManifestError(ArtifactError):
    """A newer sgsfa wrote the manifest, or the system cannot read it now: the artifact may be good, so it is kept."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        stage: The stage that built the artifact.
        name: Name of the run.
        provenance: Everything that decides the content.
        started: When the first session began, ISO 8601 with time zone.
        finished: When it was published.
        seconds: Duration of the last session.
        sessions: 1, or more if it was interrupted and resumed.
        versions: Of Python, the libraries that compute, and sgsfa.
        git: Commit and whether the tree was changed, if sgsfa runs from a checkout.
        files: Every file but this one, by POSIX path relative to the artifact.
        built_from: `content` of the artifacts that the stage read, by their stage.
        extra: What else the stage records (its full configuration, figures).
    """

    stage: str
    name: str
    provenance: Provenance
    started: str
    finished: str
    seconds: float
    sessions: int
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    files: Mapping[str, FileEntry]
    built_from: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the provenance."""
        return self.provenance.fingerprint()

    @property
    def content(self) -> str:
        """Fingerprint of the files. It differs between two builds only if their results do."""
        return fingerprint({name: entry.sha256 for name, entry in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        table = {each.name: getattr(self, each.name) for each in fields(self)}
        table |= {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "provenance": dict(self.provenance.values),
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }
        write_json(folder / MANIFEST, table)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises:
        ArtifactError: It is missing, damaged, or written by a newer version of sgsfa.
    """
    path = folder / MANIFEST
    try:
        table = read_json(path)
        version = table.pop("format_version")
        if version > FORMAT_VERSION:
            raise UnusableManifestError(
                f"the artifact was written by a newer sgsfa (manifest version {version})",
                where=path,
                expected=f"manifest version {FORMAT_VERSION}",
                hint="update sgsfa, or use another artifacts folder",
            )
        table.pop("fingerprint")
        files = {name: FileEntry(**entry) for name, entry in table.pop("files").items()}
        return Manifest(files=files, provenance=Provenance(table.pop("provenance")), **table)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        failed = isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError)
        kind, hint = ArtifactError, "delete the folder"
        if failed:
            kind, hint = UnusableManifestError, "check its permissions and the disk"
        raise kind("cannot read the manifest", where=path, hint=hint, cause=error) from error


def describe_files(folder: Path, *, without: str) -> dict[str, FileEntry]:
    """Return size and hash of the files under `folder` except the manifest and `without`, by relative POSIX path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, without):
            found[name] = FileEntry(path.stat().st_size, sha256_file(path))
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python, the libraries that compute, sgsfa and the operating system."""
    found = {"sgsfa": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state() -> Mapping[str, Any] | None:
    """Return commit and state of the checkout that contains this code; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed copy may lie inside another project's checkout (its .venv), whose commit is not ours.
        if not git("ls-files", "--", Path(__file__).name):
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", ".."))}
    except (OSError, subprocess.SubprocessError):
        return None

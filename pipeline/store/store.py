"""The artifact store: one folder for each thing that a stage made.

    <root>/<stage>/<name>-<fingerprint8>/            a whole artifact, with manifest.json
    <root>/<stage>/<name>-<fingerprint8>.partial/    one being built, or left by a run that was stopped
    <root>/<stage>/<name>-<fingerprint8>.lock        held while it is built

An artifact appears by one rename. What was published is never changed; another fingerprint is another folder.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ArtifactError, LockedError, SgsfaError
from pipeline.runtime.files import fsync_path, is_no_space, read_json, sha256_file, write_json
from pipeline.store.lock import Owner, locked, owner
from pipeline.store.manifest import (
    MANIFEST,
    Manifest,
    NewerManifestError,
    describe_files,
    git_state,
    read_manifest,
    versions,
)

State = Literal["fresh", "partial", "missing", "broken"]

_SESSION = ".session.json"
_OWN_KEYS = ("decisive", "inputs", "built_from")
_SHOWN_DIGITS = 8
_LOW_BYTES = 1 << 20
# Names that `runtime.files.atomic_write` gives to what is not finished.
_TEMPORARY = re.compile(r"^\..+\.\d+-[0-9a-f]{8}(\.[^.]*)?$")
_DISCARDED = re.compile(r"\.discarded-[0-9a-f]{8}$")
_ARTIFACT = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact, there or not. One that is there and is being built anew is `partial`.

    Attributes:
        stage: Its stage.
        name: Name of its run.
        path: Its folder; for `missing` and `partial`, where it will be.
        state: `fresh`: whole; `partial`: begun; `missing`; `broken`: there, but its manifest is missing or unreadable.
        manifest: Of a whole artifact.
        owner: The live process that builds it.
    """

    stage: str
    name: str
    path: Path
    state: State
    manifest: Manifest | None = None
    owner: Owner | None = None

    @property
    def partial(self) -> Path:
        """The folder in which it is built."""
        return self.path.with_name(self.path.name + ".partial")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a stage writes.

    Attributes:
        path: The partial folder; for `published`, the artifact's folder.
        resumed: An earlier session left work in it.
        published: Another run finished the artifact in the meantime; there is nothing to do.
    """

    path: Path
    resumed: bool
    published: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that `prune` removes, why, and its size in bytes."""

    path: Path
    reason: str
    size: int


@dataclass(frozen=True)
class ArtifactStore:
    """The artifacts under `root`. Nothing is written before `build`."""

    root: Path

    def open(self, stage: str, name: str, fingerprint: str) -> Artifact:
        """Find an artifact; a run of another name with the same fingerprint made the same thing."""
        path = self._path(stage, name, fingerprint)
        partial = _partial(path)
        # An artifact that is being replaced is no longer what was wanted of it.
        if not (partial.is_dir() and _replaces(partial)):
            for folder in (path, *sorted(path.parent.glob(f"*-{fingerprint[:_SHOWN_DIGITS]}"))):
                found = _look(folder)
                if found.state == "broken" and folder == path:
                    return found
                if found.manifest is not None and found.manifest.fingerprint == fingerprint:
                    return found
        if not partial.is_dir():
            return Artifact(stage, name, path, "missing")
        return Artifact(stage, name, path, "partial", owner=owner(_lock(path)))

    def at(self, folder: Path) -> Artifact:
        """The artifact in `folder`, whole or broken.

        Raises:
            ArtifactError: The folder is not one.
        """
        if not (folder / MANIFEST).exists():
            raise ArtifactError(
                "this folder is no artifact: it has no manifest" if folder.is_dir() else "there is no such folder",
                where=folder,
                expected=f"a folder <stage>/<run>-<fingerprint> with {MANIFEST}, as `sgsfa artifacts list` shows them",
            )
        return _look(folder)

    @contextlib.contextmanager
    def build(
        self,
        stage: str,
        name: str,
        fingerprint: str,
        *,
        manifest: Mapping[str, Any],
        wait: bool = False,
        replace: bool = False,
    ) -> Iterator[Workspace]:
        """Build an artifact: the body writes into the workspace, a clean exit publishes it.

        On any exception, Ctrl-C included, what the body wrote stays in the partial folder for the next session.

        Args:
            stage: Stage of the artifact.
            name: Name of the run.
            fingerprint: Of everything that decides the content.
            manifest: `decisive` (configuration by dotted key), `inputs` (fingerprint by name), `built_from` (when
                each stage that it reads from was finished), and what else is to be kept, which goes under `extra`.
                What was made or begun from other artifacts than `built_from` names is not gone on with.
            wait: Wait for another run that builds it, instead of stopping.
            replace: Build it although it is there, from nothing; the old one goes at the moment of publication. If it
                is interrupted, the next session goes on with it, without `replace`.

        Yields:
            The workspace.

        Raises:
            LockedError: Another live process builds it, and `wait` is off.
            ArtifactError: The store cannot be written, or the disk is full.
        """
        path = self._path(stage, name, fingerprint)
        partial = _partial(path)
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _explained(self.root):
                stack.enter_context(locked(_lock(path), wait=wait))
                built_from = dict(manifest.get("built_from", {}))
                earlier = _session(partial)
                # What was to be replaced still is, although what was made for that is of no use.
                replace = replace or (earlier is not None and earlier.spoiled and earlier.replaces)
                if replace or _is_spoiled(partial, built_from):
                    _discard(partial)
                if not replace and self._finished_elsewhere(path, fingerprint, built_from):
                    yield Workspace(path, resumed=True, published=True)
                    return
                resumed = partial.is_dir()
                partial.mkdir(exist_ok=True)
                session = _begin_session(partial, replaces=replace or path.is_dir(), built_from=built_from)
            begun = time.monotonic()
            stack.callback(_discard_if_empty, partial)
            with _explained(partial):
                yield Workspace(partial, resumed=resumed, published=False)
                _sweep(partial)
                extra = {key: value for key, value in manifest.items() if key not in _OWN_KEYS}
                Manifest(
                    stage=stage,
                    name=name,
                    fingerprint=fingerprint,
                    decisive=dict(manifest.get("decisive", {})),
                    inputs=dict(manifest.get("inputs", {})),
                    started=session.started,
                    finished=_now(),
                    seconds=round(time.monotonic() - begun, 3),
                    sessions=session.count,
                    versions=versions(),
                    git=git_state(),
                    files=describe_files(partial, besides=_SESSION),
                    extra=extra,
                    built_from=built_from,
                ).write(partial)
                # Only now: until there is a manifest, this file alone knows what the folder was made from.
                (partial / _SESSION).unlink(missing_ok=True)
                _publish(partial, path)

    def spoil(self, workspace: Workspace) -> None:
        """Say that what lies in a workspace must not be gone on with: the next session begins from nothing."""
        path = workspace.path / _SESSION
        write_json(path, {**read_json(path), "spoiled": True})

    def list(self) -> list[Artifact]:
        """Everything in the store, whole, partial and broken, by stage and then by age."""
        found = []
        for folder in sorted(self.root.glob("*/*")):
            if not folder.is_dir() or _DISCARDED.search(folder.name):
                continue
            if folder.name.endswith(".partial"):
                path = folder.with_name(folder.name.removesuffix(".partial"))
                if not path.is_dir() or _replaces(folder):
                    name = path.name.rpartition("-")[0]
                    found.append(Artifact(folder.parent.name, name, path, "partial", owner=owner(_lock(path))))
            elif (folder / MANIFEST).exists() or _ARTIFACT.search(folder.name):
                found.append(_look(folder))
        return sorted(found, key=lambda a: (a.stage, a.manifest.finished if a.manifest else "~", a.path.name))

    def verify(self, artifact: Artifact) -> tuple[str, ...]:
        """Compare the files of a whole artifact with its manifest.

        Returns:
            A sentence for each file that is missing, changed or not the artifact's own; empty when all is well.
        """
        if artifact.state == "broken":
            return (_fault(artifact.path),)
        if artifact.manifest is None:
            return ("it is not finished",)
        faults = []
        for name, entry in artifact.manifest.files.items():
            path = artifact.path / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif path.stat().st_size != entry.size:
                faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry.size}")
            elif sha256_file(path) != entry.sha256:
                faults.append(f"{name} has been changed: its SHA-256 is not that of the manifest")
        known = {*artifact.manifest.files, MANIFEST}
        present = (path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file())
        faults += [f"{name} does not belong to it" for name in sorted(present) if name not in known]
        return tuple(faults)

    def prunable(self, keep: Sequence[Path], *, names: Sequence[str] | None = None) -> tuple[Removal, ...]:
        """What can go: artifacts that nobody asked to keep or that are broken, and the litter of dead runs.

        Nothing that a live process builds is listed, and nothing that a newer sgsfa wrote.

        Args:
            keep: Folders of artifacts to keep, whole or partial.
            names: Only artifacts of runs with these names; None: of all runs. Litter goes whatever its name.
        """
        kept = {path.resolve() for path in keep}
        removals = []
        for artifact in self.list():
            if artifact.owner or (names is not None and artifact.name not in names):
                continue
            if artifact.state == "broken":
                if not _is_newer(artifact.path):
                    removals.append(Removal(artifact.path, f"broken: {_fault(artifact.path)}", _size(artifact.path)))
            elif artifact.path.resolve() in kept:
                continue
            elif artifact.state == "fresh":
                removals.append(Removal(artifact.path, "no plan uses it", _size(artifact.path)))
            else:
                removals.append(Removal(artifact.partial, "begun, and no plan uses it", _size(artifact.partial)))
        listed = {removal.path for removal in removals}
        for path in sorted(self.root.glob("*/*")):
            reason = _litter(path)
            if reason and path not in listed:
                removals.append(Removal(path, reason, _size(path)))
        return tuple(removals)

    def remove(self, removals: Sequence[Removal]) -> tuple[Removal, ...]:
        """Remove what `prunable` listed. A folder first loses its name, so that no reader sees half of one.

        Returns:
            What was left where it is, because another process has begun to build it in the meantime.

        Raises:
            ArtifactError: Something cannot be removed.
        """
        busy = []
        with _explained(self.root):
            for removal in removals:
                path = removal.path
                lock = _lock_of(path)
                try:
                    with contextlib.nullcontext() if lock is None else locked(lock):
                        if path.is_dir():
                            _discard(path)
                        elif path != lock:  # whoever held a lock removes its file
                            path.unlink(missing_ok=True)
                except LockedError:
                    busy.append(removal)
        return tuple(busy)

    def _path(self, stage: str, name: str, fingerprint: str) -> Path:
        return self.root / stage / f"{name}-{fingerprint[:_SHOWN_DIGITS]}"

    def _finished_elsewhere(self, path: Path, fingerprint: str, built_from: Mapping[str, str]) -> bool:
        """Whether the artifact is there, published by another run or by a session killed just before its rename."""
        partial = _partial(path)
        if (partial / MANIFEST).is_file():
            found = _look(partial).manifest
            # The manifest is written last and names every file, so a matching folder is a whole artifact.
            if found and found.fingerprint == fingerprint and describe_files(partial, besides=_SESSION) == found.files:
                (partial / _SESSION).unlink(missing_ok=True)
                _publish(partial, path)
            else:
                (partial / MANIFEST).unlink()
        if partial.is_dir() and _replaces(partial):
            return False
        found = _look(path).manifest
        return found is not None and found.fingerprint == fingerprint and found.is_from(built_from)


@dataclass(frozen=True, slots=True)
class _Session:
    """What a partial folder remembers: its first start, how many sessions worked on it, and what they made it from.

    Attributes:
        started: When the first session began.
        count: Sessions so far.
        replaces: It is to take the place of an artifact that is there.
        built_from: As in the manifest.
        spoiled: It must not be gone on with.
    """

    started: str
    count: int
    replaces: bool = False
    built_from: Mapping[str, str] = field(default_factory=dict)
    spoiled: bool = False


def _look(folder: Path) -> Artifact:
    """What lies in a folder that should be a whole artifact."""
    if not folder.is_dir():
        return Artifact(folder.parent.name, folder.name.rpartition("-")[0], folder, "missing")
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return Artifact(folder.parent.name, folder.name.rpartition("-")[0], folder, "broken")
    return Artifact(manifest.stage, manifest.name, folder, "fresh", manifest)


def _fault(folder: Path) -> str:
    try:
        read_manifest(folder)
    except ArtifactError as error:
        return error.message
    return "it was broken a moment ago"


def _is_newer(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except NewerManifestError:
        return True
    except ArtifactError:
        return False
    return False


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _lock_of(path: Path) -> Path | None:
    """The lock that whoever removes `path` must hold; None for what has no name that a builder could look for."""
    if path.suffix == ".lock":
        return path
    if _DISCARDED.search(path.name) or _TEMPORARY.match(path.name):
        return None
    return _lock(path.with_name(path.name.removesuffix(".partial")))


def _session(partial: Path) -> _Session | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _Session(**read_json(partial / _SESSION))
    return None


def _begin_session(partial: Path, *, replaces: bool, built_from: Mapping[str, str]) -> _Session:
    """Note that a session begins; its number counts from 1."""
    _sweep(partial)
    earlier = _session(partial) or _Session(_now(), 0)
    session = _Session(earlier.started, earlier.count + 1, replaces or earlier.replaces, built_from)
    write_json(partial / _SESSION, asdict(session))
    return session


def _replaces(partial: Path) -> bool:
    """Whether a partial folder is to take the place of an artifact that is there."""
    if (partial / MANIFEST).is_file():
        return True  # killed just before it did
    session = _session(partial)
    return session is not None and session.replaces


def _is_spoiled(partial: Path, built_from: Mapping[str, str]) -> bool:
    """Whether a partial folder was made from other things than a session would go on with."""
    session = _session(partial)
    if session is None:
        manifest = _look(partial).manifest
        return manifest is not None and not manifest.is_from(built_from)
    return session.spoiled or any(built_from.get(key, value) != value for key, value in session.built_from.items())


def _discard_if_empty(partial: Path) -> None:
    """A session that failed before it wrote anything leaves nothing to resume."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in partial.iterdir()} <= {_SESSION}:
            shutil.rmtree(partial)


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.match(path.name) and path.is_file():
            path.unlink()


def _publish(partial: Path, path: Path) -> None:
    for entry in partial.rglob("*"):
        fsync_path(entry)
    fsync_path(partial)
    if path.exists():
        # Only a rebuild, or a folder with a broken manifest, comes here.
        old = _take_name_away(path)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
    fsync_path(path.parent)


def _discard(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(_take_name_away(folder))


def _take_name_away(folder: Path) -> Path:
    """Rename a folder that goes, so that nobody finds it while it is being deleted."""
    discarded = folder.with_name(f"{folder.name}.discarded-{secrets.token_hex(4)}")
    return folder.rename(discarded)


def _litter(path: Path) -> str | None:
    if _DISCARDED.search(path.name):
        return "left by an interrupted removal"
    if path.suffix == ".lock" and path.is_file() and owner(path) is None and not _has_partial(path):
        return "lock of a dead run"
    if _TEMPORARY.match(path.name) and path.is_file():
        return "temporary file of a dead run"
    if path.name.endswith(".partial") and path.is_dir() and path.with_suffix("").is_dir() and not _replaces(path):
        return "left beside a finished artifact" if owner(_lock(path.with_suffix(""))) is None else None
    return None


def _has_partial(lock: Path) -> bool:
    return _partial(lock.with_suffix("")).is_dir()


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def _explained(where: Path) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into an error for people."""
    try:
        yield
    except SgsfaError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and is_no_space(error)
        # Libraries that write files themselves (HDF5, torch, safetensors) report a full disk each in its own way.
        if full or "No space left" in str(error) or _free_bytes(where) < _LOW_BYTES:
            raise ArtifactError(
                "the disk is full",
                where=where,
                hint="free some space (`sgsfa artifacts prune`) and run again; it goes on from what is done",
            ) from error
        if _is_unwritable(error, where):
            raise ArtifactError(
                f"the artifacts folder cannot be written: {error}",
                where=where,
                hint="choose another one: --set artifacts=FOLDER",
            ) from error
        raise


def _is_unwritable(error: Exception, where: Path) -> bool:
    kinds = (PermissionError, NotADirectoryError, FileExistsError)
    if not (isinstance(error, kinds) or (isinstance(error, OSError) and error.errno == errno.EROFS)):
        return False
    concerned = getattr(error, "filename", None)
    # A stage may also fail on a file of the user's that lies elsewhere; then this would be the wrong story.
    return concerned is None or Path(concerned).absolute().is_relative_to(where.absolute())


def _free_bytes(where: Path) -> float:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(where).free
    return float("inf")

"""`sgsfa artifacts`: list, verify and prune cached artifacts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import DEFAULT_FILE, PresetOption, SetOption, command, command_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs
    from pipeline.store.artifact import Artifact
    from pipeline.store.prune import Removal

app = command_app("List, verify and prune cached artifacts.", "sgsfa artifacts list", "sgsfa artifacts verify")

RootOption = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="The artifacts folder.", show_default=True)]
_ROOT = Path("artifacts")


@command(app, "sgsfa artifacts list", "sgsfa artifacts list --root /data/artifacts --json", name="list")
def list_artifacts(root: RootOption = _ROOT) -> None:
    """List all artifacts: complete, incomplete and broken ones."""
    from pipeline.store.store import ArtifactStore

    found = [_as_data(artifact) for artifact in ArtifactStore(root).list()]
    console.emit({"artifacts": found}, lambda: [_table(found) if found else f"{root} has no artifacts."])


@command(app, "sgsfa artifacts verify", "sgsfa artifacts verify artifacts/masks/demo-1a2b3c4d")
def verify(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Artifacts to verify; without any: all.")
    ] = None,
    root: RootOption = _ROOT,
) -> RejectedInputs | None:
    """Compare the size and SHA-256 of every file with the manifests.

    Exits with 0 if all files are as published, otherwise with 3 and a list of what is not.
    """
    from pipeline.errors import ArtifactError, Rejected, RejectedInputs
    from pipeline.store.store import ArtifactStore

    store = ArtifactStore(root)
    if folders:
        chosen = [store.at(folder) for folder in folders]
    else:
        chosen = [artifact for artifact in store.list() if artifact.state != "incomplete"]
        if not chosen:
            raise ArtifactError("no artifacts to verify", where=root, hint="`sgsfa run` builds some")
    faults = {artifact.path: store.verify(artifact) for artifact in chosen}
    rows = [(path, "\n".join(found) or "intact") for path, found in faults.items()]
    console.emit(
        {"artifacts": [{"path": path, "intact": not found, "faults": found} for path, found in faults.items()]},
        lambda: [console.table("Artifact", "State", rows=rows)],
    )
    broken = [Rejected(str(path), "; ".join(found)) for path, found in faults.items() if found]
    return RejectedInputs("verify", broken, total=len(chosen)) if broken else None


@command(app, "sgsfa artifacts prune --dry-run", "sgsfa artifacts prune -c a.toml -c b.toml --yes")
def prune(
    *,
    configs: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="Keep what this configuration uses. Repeatable. Without it and without --preset: sgsfa.toml.",
        ),
    ] = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    everything: Annotated[
        bool, typer.Option("--all-runs", help="Also remove artifacts of runs with other names.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove artifacts of a run that its configuration no longer uses, and leftovers of crashed runs.

    What a configuration uses depends on all its keys: name it by -c or --preset, with the same --set as the run.
    Artifacts of other runs are kept unless --all-runs is given, and so is whatever a live process is building. The
    command asks before it removes anything.
    """
    from pipeline.stages.plan import make_plan
    from pipeline.store.store import ArtifactStore

    if not configs and preset is None and DEFAULT_FILE.is_file():
        configs = [DEFAULT_FILE]
    settings = _settings(configs or [], preset, overrides or [])
    keep = [entry.artifact.path for each in settings for entry in make_plan(each, progress=console.progress()).stages]
    names = None if everything else sorted({each.name for each in settings})
    roots = {each.artifacts.resolve(): each.artifacts for each in settings}
    found = {store: store.prunable(keep, names=names) for store in map(ArtifactStore, roots.values())}
    removals = [removal for some in found.values() for removal in some]
    busy: list[Removal] = []
    removed = False
    if removals and not dry_run:
        origin = [*map(str, configs or []), *([f"--preset {preset}"] if preset else [])]
        origin += [f"--set {text}" for text in overrides or []]
        console.show(f"Kept: artifacts of {', '.join(origin)}", _removals(removals))
        if removed := yes or _confirmed(sum(removal.size for removal in removals)):
            busy = [left for store, some in found.items() for left in store.remove(some)]
    total = sum(removal.size for removal in removals) - sum(left.size for left in busy)
    if not removals:
        drawn: RenderableType = "Nothing to remove."
    elif dry_run:
        drawn = _removals(removals, title="Would be removed")
    else:
        left = "".join(f"\nKept {each.path}: another run is building it." for each in busy)
        drawn = f"Removed {console.size(total)}.{left}" if removed else "Nothing was removed."
    console.emit({"removed": removed, "bytes": total, "removals": removals, "left": busy}, lambda: [drawn])


def _settings(files: Sequence[Path], preset: str | None, overrides: Sequence[str]) -> list[RunConfig]:
    from pipeline.config_file import load_config
    from pipeline.errors import ConfigError

    if not files and preset is None:
        # The defaults would be taken for a configuration named `run`, and the artifacts of all others would go.
        raise ConfigError(
            "no configuration says which artifacts to keep",
            expected="-c FILE or --preset NAME, or a sgsfa.toml in this folder",
            hint="use the same --set options as the runs whose artifacts are to be kept",
        )
    chosen: Sequence[Path | None] = files or [None]
    return [load_config(file, preset=preset, overrides=overrides) for file in chosen]


def _confirmed(total: int) -> bool:
    from pipeline.errors import ConfigError

    try:
        return typer.confirm(f"Remove these ({console.size(total)})?", err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C
        raise ConfigError(
            "cannot ask for confirmation without a terminal", hint="--yes removes them, --dry-run only lists them"
        ) from None


def _removals(removals: Sequence[Removal], title: str | None = None) -> RenderableType:
    rows = [(removal.path, removal.reason, console.size(removal.size)) for removal in removals]
    return console.table("Path", "Why", "Size>", rows=rows, title=title)


def _as_data(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "stage": artifact.stage,
        "name": artifact.name,
        "state": artifact.state,
        "path": artifact.folder,
        "fingerprint": manifest.fingerprint if manifest else None,
        "size": manifest.size if manifest else None,
        "finished": manifest.finished if manifest else None,
        "built_by": str(artifact.owner) if artifact.owner else None,
    }


def _table(artifacts: Sequence[dict[str, Any]]) -> RenderableType:
    rows = [
        (
            each["stage"],
            each["name"],
            f"being built by {each['built_by']}" if each["built_by"] else each["state"],
            "-" if each["size"] is None else console.size(each["size"]),
            "-" if each["finished"] is None else console.moment(each["finished"]),
            each["path"],
        )
        for each in artifacts
    ]
    return console.table("Stage", "Run", "State", "Size>", "Finished", "Path", rows=rows)

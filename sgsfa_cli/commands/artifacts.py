"""`sgsfa artifacts`: list, verify and prune cached artifacts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import DEFAULT_FILE, JsonOption, PresetOption, QuietOption, SetOption, command_app, examples

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.config import RunConfig
    from pipeline.store.artifact import Artifact
    from pipeline.store.prune import Removal

app = command_app("List, verify and prune cached artifacts.", "sgsfa artifacts list", "sgsfa artifacts verify")

RootOption = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="The artifacts folder.", show_default=True)]
_ROOT = Path("artifacts")


@app.command("list", epilog=examples("sgsfa artifacts list", "sgsfa artifacts list --root /data/artifacts --json"))
def list_artifacts(root: RootOption = _ROOT, json: JsonOption = False) -> None:
    """List all artifacts: complete, incomplete and broken ones."""
    from pipeline.store.store import ArtifactStore

    found = ArtifactStore(root).list()
    console.emit(
        {"artifacts": [_as_data(artifact) for artifact in found]}, json=json, draw=lambda: _draw_list(found, root)
    )


@app.command(epilog=examples("sgsfa artifacts verify", "sgsfa artifacts verify artifacts/masks/demo-1a2b3c4d"))
def verify(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Artifacts to verify; without any: all.")
    ] = None,
    root: RootOption = _ROOT,
    json: JsonOption = False,
) -> None:
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
    console.emit(
        {"artifacts": [{"path": path, "intact": not found, "faults": found} for path, found in faults.items()]},
        json=json,
        draw=lambda: console.table(
            "Artifact", "State", rows=[(path, "\n".join(found) or "intact") for path, found in faults.items()]
        ),
    )
    broken = [Rejected(str(path), "; ".join(found)) for path, found in faults.items() if found]
    if broken:
        raise RejectedInputs("verify", broken, total=len(chosen))


@app.command(epilog=examples("sgsfa artifacts prune --dry-run", "sgsfa artifacts prune -c a.toml -c b.toml --yes"))
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
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove artifacts of a run that its configuration no longer uses, and leftovers of crashed runs.

    What a configuration uses depends on all its keys: name it by -c or --preset, with the same --set as the run.
    Artifacts of other runs are kept unless --all-runs is given, and so is whatever a live process is building. The
    command asks before it removes anything.
    """
    from pipeline.stages.plan import make_plan
    from pipeline.store.store import ArtifactStore

    settings = _settings(configs, preset, overrides)
    progress = console.progress(quiet=quiet)
    keep = [entry.artifact.path for config in settings for entry in make_plan(config, progress=progress).stages]
    names = None if everything else sorted({config.name for config in settings})
    stores = [
        ArtifactStore(root) for root in {config.artifacts.resolve(): config.artifacts for config in settings}.values()
    ]
    found = [(store, store.prunable(keep, names=names)) for store in stores]
    removals = [removal for _, some in found for removal in some]
    removed = False
    busy: tuple[Removal, ...] = ()
    if removals and not dry_run:
        if not json:
            console.out().print(f"Kept: artifacts of {_origin(configs, preset, overrides)}", markup=False)
            console.out().print(_removal_table(removals))
        if yes or _confirmed(sum(removal.size for removal in removals)):
            busy = tuple(left for store, some in found for left in store.remove(some))
            removed = True
    total = sum(removal.size for removal in removals) - sum(left.size for left in busy)
    console.emit(
        {"removed": removed, "bytes": total, "removals": removals, "left": busy},
        json=json,
        draw=lambda: _draw_prune(removals, busy, total, removed=removed, dry_run=dry_run),
    )


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


def _settings(configs: list[Path] | None, preset: str | None, overrides: list[str] | None) -> list[RunConfig]:
    from pipeline.config_file import load_config
    from pipeline.errors import ConfigError

    files: list[Path | None] = list(configs or [])
    if not files and preset is None and not DEFAULT_FILE.is_file():
        # The defaults would be taken for a configuration named `run`, and the artifacts of all others would go.
        raise ConfigError(
            "no configuration says which artifacts to keep",
            expected="-c FILE or --preset NAME, or a sgsfa.toml in this folder",
            hint="use the same --set options as the runs whose artifacts are to be kept",
        )
    if not files:
        files = [DEFAULT_FILE if preset is None else None]
    return [load_config(file, preset=preset, overrides=overrides or ()) for file in files]


def _origin(configs: list[Path] | None, preset: str | None, overrides: list[str] | None) -> str:
    """Return the options that name the configurations."""
    files = [str(file) for file in configs or ([DEFAULT_FILE] if preset is None else [])]
    named = [*files, *([f"--preset {preset}"] if preset else []), *(f"--set {text}" for text in overrides or [])]
    return ", ".join(named)


def _draw_prune(
    removals: Sequence[Removal], busy: Sequence[Removal], total: int, *, removed: bool, dry_run: bool
) -> RenderableType:
    if not removals:
        return "Nothing to remove."
    if dry_run:
        return _removal_table(removals, title="Would be removed")
    if not removed:
        return "Nothing was removed."
    left = "".join(f"\nKept {each.path}: another run is building it." for each in busy)
    return f"Removed {console.size(total)}.{left}"


def _removal_table(removals: Sequence[Removal], title: str | None = None) -> RenderableType:
    rows = [(removal.path, removal.reason, console.size(removal.size)) for removal in removals]
    return console.table("Path", "Why", "Size>", rows=rows, title=title)


def _as_data(artifact: Artifact) -> dict[str, object]:
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


def _draw_list(found: Sequence[Artifact], root: Path) -> RenderableType:
    if not found:
        return f"{root} has no artifacts."
    rows = []
    for artifact in found:
        data, manifest = _as_data(artifact), artifact.manifest
        size, when = (console.size(manifest.size), console.moment(manifest.finished)) if manifest else ("-", "-")
        state = f"being built by {artifact.owner}" if artifact.owner else data["state"]
        rows.append((artifact.stage, artifact.name, state, size, when, data["path"]))
    return console.table("Stage", "Run", "State", "Size>", "Finished", "Path", rows=rows)

"""`sgsfa artifacts`: list, verify and prune what runs have left."""

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

app = command_app("List, verify and prune what runs have left.", "sgsfa artifacts list", "sgsfa artifacts verify")

RootOption = Annotated[Path, typer.Option("--root", metavar="FOLDER", help="The artifacts folder.", show_default=True)]
_ROOT = Path("artifacts")


@app.command("list", epilog=examples("sgsfa artifacts list", "sgsfa artifacts list --root /data/artifacts --json"))
def list_artifacts(root: RootOption = _ROOT, json: JsonOption = False) -> None:
    """List all artifacts: whole, begun and broken."""
    from pipeline.store.store import ArtifactStore

    found = ArtifactStore(root).list()
    console.emit(
        {"artifacts": [_as_data(artifact) for artifact in found]},
        json=json,
        draw=lambda: (
            console.table(
                "Stage", "Run", "State", "Size>", "When", "Where", rows=[_row(artifact) for artifact in found]
            )
            if found
            else f"There is nothing in {root}."
        ),
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

    Ends with 0 if all is as it was published, else with 3 and a list of what is not.
    """
    from pipeline.errors import ArtifactError, Rejected, RejectedInputs
    from pipeline.store.store import ArtifactStore

    store = ArtifactStore(root)
    if folders:
        chosen = [store.at(folder) for folder in folders]
    else:
        chosen = [artifact for artifact in store.list() if artifact.state != "incomplete"]
        if not chosen:
            raise ArtifactError("there is no artifact to verify", where=root, hint="`sgsfa run` makes some")
    faults = {artifact.path: store.verify(artifact) for artifact in chosen}
    console.emit(
        {"artifacts": [{"path": path, "sound": not found, "faults": found} for path, found in faults.items()]},
        json=json,
        draw=lambda: console.table(
            "Artifact",
            "Verdict",
            rows=[(path, "\n".join(found) if found else "as published") for path, found in faults.items()],
        ),
    )
    broken = [Rejected(str(path), "; ".join(found)) for path, found in faults.items() if found]
    if broken:
        raise RejectedInputs("verify", broken, total=len(chosen))


@app.command(epilog=examples("sgsfa artifacts prune --dry-run", "sgsfa artifacts prune -c a.toml -c b.toml --yes"))
def prune(
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
        bool, typer.Option("--all-runs", help="Also artifacts of runs with other names than the configurations'.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove old artifacts of a run that its configuration no longer uses, and the litter of dead runs.

    What a configuration uses depends on all its keys: name it by -c or --preset, with the same --set as the run.
    Other runs' artifacts stay, unless --all-runs is given, and so does whatever a live process is building. It asks
    before it removes anything.
    """
    from pipeline.stages.plan import plan
    from pipeline.store.store import ArtifactStore

    settings = _settings(configs, preset, overrides)
    roots = {config.artifacts.resolve(): config.artifacts for config in settings}
    progress = console.progress(quiet=quiet)
    keep = [entry.artifact.path for config in settings for entry in plan(config, progress=progress)]
    runs = {f"run {config.name!r}" for config in settings}
    names = None if everything else sorted({config.name for config in settings})
    found = [(ArtifactStore(root), ArtifactStore(root).prunable(keep, names=names)) for root in roots.values()]
    removals = [removal for _, some in found for removal in some]
    total = sum(removal.size for removal in removals)
    removed = False
    busy: tuple[Removal, ...] = ()
    if removals and not dry_run:
        if not json:
            console.out().print(f"Kept: what {_origin(configs, preset, overrides)} uses ({', '.join(sorted(runs))}).")
            console.out().print(console.table("Path", "Why", "Size>", rows=_removal_rows(removals)))
        if yes or _confirmed(total):
            busy = tuple(left for store, some in found for left in store.remove(some))
            removed = True
    for left in busy:
        progress.warn(f"{left.path} was left: another run builds it now")
    total -= sum(left.size for left in busy)
    console.emit(
        {"removed": removed, "bytes": total, "removals": removals, "left": busy},
        json=json,
        draw=lambda: _verdict(removals, total, removed, dry_run),
    )


def _confirmed(total: int) -> bool:
    from pipeline.errors import ConfigError

    try:
        return typer.confirm(f"Remove these ({console.size(total)})?", err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise  # Ctrl-C
        raise ConfigError(
            "nobody answers whether to remove them", hint="--yes removes them, --dry-run only lists them"
        ) from None


def _settings(configs: list[Path] | None, preset: str | None, overrides: list[str] | None) -> list[RunConfig]:
    from pipeline.config import load_config
    from pipeline.errors import ConfigError

    files: list[Path | None] = list(configs or [])
    if not files and preset is None and not DEFAULT_FILE.is_file():
        # The defaults would pass for a configuration named `run`, and all that other ones made would go.
        raise ConfigError(
            "nothing says which artifacts to keep",
            expected="-c FILE or --preset NAME, or a sgsfa.toml in this folder",
            hint="with the same --set options as the runs whose artifacts are to stay",
        )
    if not files:
        files = [DEFAULT_FILE if preset is None else None]
    return [load_config(file, preset=preset, overrides=overrides or ()) for file in files]


def _origin(configs: list[Path] | None, preset: str | None, overrides: list[str] | None) -> str:
    """The configurations in words."""
    files = [str(file) for file in configs or ([DEFAULT_FILE] if preset is None else [])]
    named = [*files, *([f"--preset {preset}"] if preset else []), *(f"--set {text}" for text in overrides or [])]
    return ", ".join(named)


def _verdict(removals: Sequence[Removal], total: int, removed: bool, dry_run: bool) -> RenderableType:
    if not removals:
        return "There is nothing to remove."
    if dry_run:
        return console.table("Path", "Why", "Size>", rows=_removal_rows(removals), title="Would be removed")
    return f"Removed {console.size(total)}." if removed else "Nothing was removed."


def _removal_rows(removals: Sequence[Removal]) -> list[tuple[object, ...]]:
    return [(removal.path, removal.reason, console.size(removal.size)) for removal in removals]


def _as_data(artifact: Artifact) -> dict[str, object]:
    return {
        "stage": artifact.stage,
        "name": artifact.name,
        "state": artifact.state,
        "path": artifact.folder,
        "fingerprint": artifact.manifest.fingerprint if artifact.manifest else None,
        "size": artifact.manifest.size if artifact.manifest else None,
        "finished": artifact.manifest.finished if artifact.manifest else None,
        "built_by": str(artifact.owner) if artifact.owner else None,
    }


def _row(artifact: Artifact) -> tuple[object, ...]:
    manifest = artifact.manifest
    if manifest is not None:
        when = console.moment(manifest.finished)
        return artifact.stage, artifact.name, "complete", console.size(manifest.size), when, artifact.path
    if artifact.state == "broken":
        return artifact.stage, artifact.name, "broken", "-", "-", artifact.path
    state = f"being built by {artifact.owner}" if artifact.owner else "incomplete"
    return artifact.stage, artifact.name, state, "-", "-", artifact.partial

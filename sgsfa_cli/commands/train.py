"""`sgsfa train`: the training stage of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SetOption,
    command_app,
    examples,
    load,
    overriding,
    warn_of_defaults,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

app = command_app()


@app.command(
    epilog=examples(
        "sgsfa train --preset demo",
        "sgsfa train --preset strong --data market1501:/data/Market-1501 --epochs 60 --amp bf16",
        "sgsfa train --preset strong --data csv:mine/dataset.csv --start model.safetensors --epochs 20",
        "sgsfa train --preset paper --weights resnet50.pth --set train.accumulate=4",
    )
)
def train(
    *,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="KIND:PATH", help="Data set; `sgsfa data list` lists the kinds."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", "-e", metavar="N", help="Number of epochs.")] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="resnet18, 34, 50 or 101, mobilenet_v2, or timm:NAME.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Starting weights of the backbone: imagenet, builtin, rendered, none, or a file."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Checkpoint of the same network to start from, instead of --weights; or builtin."
        ),
    ] = None,
    amp: Annotated[str | None, typer.Option(metavar="PRECISION", help="Mixed precision: off, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again, even if the result is up to date.")] = False,
    config: ConfigOption = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network; run the stages before it, such as `masks`, if they are not up to date.

    The same command resumes a training that was stopped, killed or out of memory. On several GPUs or machines, start
    it with torchrun --nproc-per-node=N -m sgsfa_cli train ...; the processes share each batch. Options take precedence
    over --set, and both over the configuration file.
    """
    if weights is not None and start is not None:
        from pipeline.errors import ConfigError

        raise ConfigError(
            "two kinds of starting weights",
            where="--weights and --start",
            expected="one of them",
            hint="a checkpoint has all weights, including those of the backbone",
        )
    options = {
        "data.source": data,
        "train.epochs": epochs,
        "model.backbone": backbone,
        "model.weights": weights,
        "train.start": start,
        "train.amp": amp,
        "train.device": device,
    }
    settings = load(config, preset, [*(overrides or ()), *overriding(options)])

    from pipeline.runtime.files import read_json
    from pipeline.stages.plan import make_plan
    from pipeline.stages.run import run_stages
    from pipeline.training.report import REPORT_FILE

    progress = console.progress(quiet=quiet)
    warn_of_defaults(settings, config, preset)
    if force:
        # Only the training is repeated; the stages before it run if they are not up to date.
        names = [entry.name for entry in make_plan(settings, until="train", progress=progress).selected]
        if len(names) > 1:
            run_stages(settings, until=names[-2], progress=progress)
        report = run_stages(settings, from_stage="train", until="train", force=True, progress=progress)
    else:
        report = run_stages(settings, until="train", progress=progress)
    outcome = report.stages[-1]
    result: dict[str, Any] = read_json(outcome.path / REPORT_FILE)
    console.emit(
        {"action": outcome.action, "folder": outcome.path.as_posix(), **result},
        json=json,
        draw=lambda: _draw(outcome.action, outcome.path, result),
    )
    if report.rejected:
        from pipeline.errors import RejectedInputs

        raise RejectedInputs("train", report.rejected, total=outcome.total)


def _draw(action: str, folder: Path, result: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from pipeline.parts import PARTS

    masks = f"{result['without_mask']} without mask" if result["without_mask"] else "all with masks"
    rows: list[tuple[str, str]] = [
        ("images", f"{result['images']} of {result['identities']} identities, {masks}"),
        ("left out", f"{len(result['failed'])} unreadable images"),
        ("epochs, steps", f"{result['epochs']}, {result['steps']}"),
        ("time", f"{console.duration(result['seconds'])}, {result['images_per_second']:.1f} images/s"),
        ("device", result["device"]),
    ]
    if not result["failed"]:
        del rows[1]
    if result["best"] is not None:
        epoch, precision = result["best"]
        rows.append(("best in training", f"mAP {100 * precision:.1f} % after epoch {epoch}: best.safetensors"))
    parts: list[RenderableType] = [console.table("Training", "", rows=rows)]
    if result["visibility_accuracy"]:
        accuracy, auc = result["visibility_accuracy"], result["visibility_auc"]
        visibility = [
            (part, f"{tau:.3f}", f"{100 * accuracy[part]:.1f} %", f"{auc[part]:.3f}" if part in auc else "-")
            if part in accuracy
            else (part, "never visible", "-", "-")
            for part, tau in zip(PARTS, result["thresholds"], strict=True)
        ]
        parts.append(console.table("Part", "Threshold>", "Visibility accuracy>", "ROC AUC>", rows=visibility))
    done = {"ran": "Trained", "resumed": "Resumed and trained", "reused": "Already trained, nothing to do"}
    parts.append(f"{done[action]}. Checkpoint, curves and logs:")
    parts.append(console.table("", "", rows=[(name, folder / name) for name in _RESULTS]))
    return Group(*parts)


_RESULTS = ("model.safetensors", "curves.png", "metrics.jsonl")

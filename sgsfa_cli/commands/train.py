"""`sgsfa train`: the training stage of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgsfa_cli import console
from sgsfa_cli.options import amp, command, command_app, device, run_until, setting

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.errors import RejectedInputs

app = command_app()

_RESULTS = ("model.safetensors", "curves.png", "metrics.jsonl")


@command(
    app,
    "sgsfa train --preset demo",
    "sgsfa train --preset strong --data market1501:/data/Market-1501 --epochs 60 --amp bf16",
    "sgsfa train --preset strong --data csv:mine/dataset.csv --start model.safetensors --epochs 20",
    "sgsfa train --preset paper --weights resnet50.pth --set train.accumulate=4",
    sets=(
        setting(
            "data.source", "--data", "-d", metavar="KIND:PATH", help="Data set; `sgsfa data list` lists the kinds."
        ),
        setting("train.epochs", "--epochs", "-e", kind=int, metavar="N", help="Number of epochs."),
        setting("model.backbone", metavar="NAME", help="resnet18, 34, 50 or 101, mobilenet_v2, or timm:NAME."),
        setting(
            "model.weights",
            metavar="SOURCE",
            help="Starting weights of the backbone: imagenet, builtin, rendered, none, or a file.",
        ),
        setting(
            "train.start",
            metavar="FILE",
            help="Checkpoint of the same network to start from, instead of --weights; or builtin.",
        ),
        amp("train.amp"),
        device("train.device"),
    ),
)
def train(
    *,
    weights: str | None,
    start: str | None,
    force: Annotated[bool, typer.Option("--force", help="Train again, even if the result is up to date.")] = False,
    settings: RunConfig,
) -> RejectedInputs | None:
    """Train a network; run the stages before it, such as `masks`, if they are not up to date.

    The same command resumes a training that was stopped, killed or out of memory. On several GPUs or machines, start
    it with torchrun --nproc-per-node=N -m sgsfa_cli train ...; the processes share each batch. Options take precedence
    over --set, and both over the configuration file.
    """
    from pipeline.errors import ConfigError
    from pipeline.runtime.files import read_json
    from pipeline.training.report import REPORT_FILE

    if weights is not None and start is not None:
        raise ConfigError(
            "two kinds of starting weights",
            where="--weights and --start",
            expected="one of them",
            hint="a checkpoint has all weights, including those of the backbone",
        )
    # Only the training is repeated; the stages before it run if they are not up to date.
    report, rejected = run_until(settings, "train", force="train" if force else False)
    outcome = report.stages[-1]
    result: dict[str, Any] = read_json(outcome.path / REPORT_FILE)
    console.emit(
        {"action": outcome.action, "folder": outcome.path.as_posix(), **result},
        lambda: _draw(outcome.action, outcome.path, result),
    )
    return rejected


def _draw(action: str, folder: Path, result: dict[str, Any]) -> console.Drawn:
    from pipeline.parts import PARTS

    masks = f"{result['without_mask']} without mask" if result["without_mask"] else "all with masks"
    rows = [
        ("images", f"{result['images']} of {result['identities']} identities, {masks}"),
        *([("left out", f"{len(result['failed'])} unreadable images")] if result["failed"] else []),
        ("epochs, steps", f"{result['epochs']}, {result['steps']}"),
        ("time", f"{console.duration(result['seconds'])}, {result['images_per_second']:.1f} images/s"),
        ("device", result["device"]),
    ]
    if result["best"] is not None:
        epoch, precision = result["best"]
        rows.append(("best in training", f"mAP {100 * precision:.1f} % after epoch {epoch}: best.safetensors"))
    parts = [console.table("", "", rows=rows, title="Training")]
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
    files = console.table("File", "Path", rows=[(name, folder / name) for name in _RESULTS])
    return [*parts, f"{done[action]}. Checkpoint, curves and logs:", files]

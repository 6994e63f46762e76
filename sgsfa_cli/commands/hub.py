"""`sgsfa hub`: checkpoints on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgsfa_cli import console
from sgsfa_cli.options import command, command_app

app = command_app(
    "Upload and download checkpoints (Hugging Face Hub, extra hub).",
    "sgsfa hub push me/reid model.safetensors --licence cc-by-nc-4.0 --training-data 'Own cameras, with consent'",
    "sgsfa hub pull me/reid --out model.safetensors",
)

RepoArgument = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")]


@command(
    app,
    "sgsfa hub push me/reid model.safetensors --licence cc-by-nc-4.0 --training-data 'Own cameras, with consent'",
    "sgsfa hub push me/reid builtin --public --licence apache-2.0 --training-data 'Rendered identities'",
)
def push(
    *,
    repo: RepoArgument,
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, or builtin.")],
    training_data: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What the training images show, their source and terms of use."),
    ],
    licence: Annotated[
        str,
        typer.Option(metavar="ID", help="Licence of the weights: apache-2.0, cc-by-nc-4.0, other, ..."),
    ],
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="result.json of an evaluation, or its folder. Default: beside the checkpoint.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a new repository; private refuses a public one.")
    ] = True,
) -> None:
    """Upload a checkpoint with a model card: data, schedule, measured figures, licence, responsible use."""
    from pipeline.model.hub import push as run_push

    pushed = run_push(repo, checkpoint, training_data=training_data, licence=licence, results=results, private=private)
    console.emit({"repository": pushed.address, "private": pushed.private}, lambda: [pushed.address])


@command(app, "sgsfa hub pull me/reid", "sgsfa hub pull me/reid --revision v1 --out reid.safetensors")
def pull(
    *,
    repo: RepoArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")] = Path(
        "model.safetensors"
    ),
    revision: Annotated[str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit.")] = None,
    file: Annotated[str, typer.Option(metavar="NAME", help="Name in the repository.")] = "model.safetensors",
) -> None:
    """Download a checkpoint; other files are refused, and nothing is unpickled."""
    from pipeline.model.hub import pull as run_pull
    from pipeline.runtime.files import sha256_file

    path = run_pull(repo, out, revision=revision, file=file)
    facts = {"checkpoint": path, "sha256": sha256_file(path)}
    console.emit(facts, lambda: [f"{path}: SHA-256 {facts['sha256']}"])

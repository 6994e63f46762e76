"""Checkpoints on the Hugging Face Hub, through its own client (extra `hub`): a repository holds one with its card."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, FormatError, UserError, WeightsError
from pipeline.formats.checkpoint import CheckpointMeta, read_meta, resolve_checkpoint
from pipeline.formats.results import RESULT_FILE, intervals_table, load_results, results_table
from pipeline.formats.table import Table
from pipeline.model.checkpoint import load_checkpoint
from pipeline.runtime.files import sha256_file
from pipeline.store.output import output
from pipeline.version import __version__

FILE = "model.safetensors"
"""Name of the checkpoint in a repository."""

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token that may {}"
_RESPONSIBLE_USE = """\
Re-identification links images of people across cameras. Use it only with the consent of the people shown or another
lawful ground, and for purposes that they would expect. Do not use it to follow individuals without their knowledge or
to make decisions about people without human review. Rankings express similarity of clothing and shape, not identity,
and are less reliable for people who are hidden, small or unlike the training data."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub: the address of its page, and whether only its owners see it."""

    address: str
    private: bool


def push(
    repo: str,
    checkpoint: Path | str,
    *,
    training_data: str,
    licence: str,
    results: Path | None = None,
    private: bool = True,
) -> Repository:
    """Upload a checkpoint with a generated model card; the repository is created if it does not exist.

    Args:
        repo: `OWNER/NAME`.
        checkpoint: A trained network: a file, or `builtin`.
        training_data: What the training images show, where they are from and on which terms they may be used.
        licence: Licence of the weights by the Hub's identifier, as `apache-2.0`, `cc-by-nc-4.0` or `other`.
        results: `result.json` of an evaluation of this checkpoint, or its folder; None: the one beside it, if any.
        private: Create a private repository, and refuse a public one; False: a new one is public.

    Returns:
        The repository, which keeps its visibility if it existed.

    Raises:
        ConfigError: The client is not installed, there is no token, or an argument is not valid.
        WeightsError: The checkpoint is missing or damaged.
        FormatError: The results are not of this checkpoint.
        DataError: The Hub cannot be reached or rejects the request.
    """
    hub = _client()
    if "/" not in repo:
        raise ConfigError(f"{repo!r} is not a repository", expected="OWNER/NAME")
    path = resolve_checkpoint(checkpoint)
    card = model_card(repo, path, training_data=training_data, licence=licence, results=results)
    if hub.get_token() is None:
        raise ConfigError("no token for the Hugging Face Hub found", hint=_TOKEN.format("write"))
    api = hub.HfApi(library_name="sgsfa", library_version=__version__)
    with _hub_errors(repo, "write"):
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        repository = Repository(address, private=bool(api.model_info(repo).private))
        if private and not repository.private:
            raise ConfigError("the repository exists and is public", where=repo, hint="make it private on its page")
        api.create_commit(
            repo,
            [hub.CommitOperationAdd(FILE, str(path)), hub.CommitOperationAdd("README.md", card.encode())],
            commit_message="Add checkpoint and model card",
        )
    return repository


def pull(repo: str, out: Path, *, revision: str | None = None, file: str = FILE) -> Path:
    """Download a checkpoint and check that it is one of this program; nothing is unpickled.

    Args:
        repo: `OWNER/NAME`.
        out: The file to write.
        revision: A branch, tag or commit; None: the default branch.
        file: Name in the repository; a safetensors file.

    Returns:
        `out`.

    Raises:
        ConfigError: The client is not installed, or an argument is not valid.
        WeightsError: The repository has no such file, or it is not a checkpoint of this program.
        DataError: The Hub cannot be reached or rejects the request.
        FormatError: `out` exists.
        ArtifactError: `out` cannot be written.
    """
    api = _client().HfApi(library_name="sgsfa", library_version=__version__)
    if not file.endswith(".safetensors"):
        raise ConfigError(f"{file!r} is not a safetensors file", expected=FILE)
    with output(out, "checkpoint") as partial:
        if out.exists():
            raise FormatError("the file exists", where=out, hint="delete it or choose another name")
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            with _hub_errors(repo, "read"):
                # Unlike the download, it does not retry for half a minute without a network.
                api.model_info(repo, revision=revision)
                downloaded = Path(api.hf_hub_download(repo, file, revision=revision, local_dir=folder))
            try:
                load_checkpoint(downloaded)
            except WeightsError as error:
                raise WeightsError(
                    error.message, where=f"{repo}/{file}", expected=error.expected, cause=error.cause
                ) from error
            downloaded.replace(partial)
    return out


def model_card(repo: str, checkpoint: Path, *, training_data: str, licence: str, results: Path | None = None) -> str:
    """Return the model card of a checkpoint: Markdown with the Hub's metadata. See `push` for the arguments.

    Raises:
        ConfigError: The training data or the licence is not stated.
        WeightsError: The checkpoint is missing or damaged.
        FormatError: The results are missing, damaged or of another checkpoint.
    """
    if not training_data.strip():
        raise ConfigError(
            "the training data is not stated", expected="what the images show, their source and terms of use"
        )
    if not _LICENCE.fullmatch(licence):
        raise ConfigError(f"{licence!r} is not a licence identifier", expected="as apache-2.0, cc-by-nc-4.0 or other")
    meta = read_meta(checkpoint)
    model = meta.model
    kind = "global-feature baseline" if model.kind == "baseline" else "SGSFA network (seven part features)"
    start = f"starting from {meta.started_from}" if meta.started_from else f"backbone from `{model.weights}`"
    sections = [
        f"---\nlicense: {licence}\nlibrary_name: sgsfa\npipeline_tag: image-feature-extraction\n"
        "tags:\n- person-re-identification\n- occluded-person-re-identification\n---",
        f"# {repo.rpartition('/')[2]}",
        f"{kind} for person re-identification on {model.backbone}. Input: crops of one person, "
        f"{model.height} x {model.width}, fit `{model.fit}`. SHA-256: `{sha256_file(checkpoint)}`.",
        f"## Use\n\nIn a checkout of the source of sgsfa {meta.version} or later:\n\n```sh\npip install '.[hub]'\n"
        f"sgsfa hub pull {repo} --out {FILE}\n"
        f"sgsfa search person.jpg --gallery photos --checkpoint {FILE}\n```",
        f"## Training data\n\n{training_data.strip()}",
        f"Recorded in the checkpoint: {meta.trained_on or 'unnamed data'}, {meta.num_classes:,} identities, {start}.",
        "## Schedule\n\n" + _schedule(meta),
        "## Evaluation\n\n" + _evaluation(checkpoint, results),
        f"## Responsible use\n\n{_RESPONSIBLE_USE}",
        f"## Licence\n\nWeights: `{licence}`. The terms of the training data apply as well.",
    ]
    return "\n\n".join(sections) + "\n"


def _schedule(meta: CheckpointMeta) -> str:
    settings = {
        key: value
        for key, value in meta.provenance.values.items()
        if key.startswith(("train.", "loss.", "model.")) and key not in ("train.epochs", "train.seed", "train.start")
    }
    text = f"{meta.epochs} epochs, seed {meta.seed}, sgsfa {meta.version}."
    if not settings:
        return text
    table = _markdown(Table(("Setting", "Value"), tuple((f"`{key}`", str(settings[key])) for key in sorted(settings))))
    return f"{text}\n\n<details><summary>Settings</summary>\n\n{table}\n\n</details>"


def _evaluation(checkpoint: Path, stated: Path | None) -> str:
    path = stated or checkpoint.parent / RESULT_FILE
    if stated is None and not path.is_file():
        return "No evaluation was given."
    results = list(load_results(path / RESULT_FILE if path.is_dir() else path).values())
    sha256 = sha256_file(checkpoint)
    for result in results:
        if result.provenance.get("checkpoint_sha256") != sha256:
            raise FormatError(
                f"the result for {result.test_set} is of another checkpoint",
                where=path,
                expected=f"an evaluation of features of {checkpoint}",
            )
    tables = [_markdown(results_table(results)), _markdown(intervals_table(results))]
    for result in results:
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in result.counts.items())
        tables.append(f"{result.test_set}: {counts}." + "".join(f"\n* {note}" for note in result.notes))
    return "\n\n".join(filter(None, tables))


def _markdown(table: Table) -> str:
    """Return a table as Markdown; empty without rows."""
    if not table.rows:
        return ""
    rows: Sequence[Sequence[str]] = [table.columns, ["---"] * len(table.columns), *table.text_rows()]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"{table.title}:\n", *lines] if table.title else lines)


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            "the client of the Hugging Face Hub is not installed", hint="pip install 'sgsfa[hub]'"
        ) from None
    return huggingface_hub


@contextmanager
def _hub_errors(repo: str, right: str) -> Iterator[None]:
    """Explain the errors of the Hub's client; `right` is what a token must allow: read or write."""
    try:
        yield
    except Exception as error:
        explained = _explain(error, repo, _TOKEN.format(right))
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, repo: str, log_in: str) -> UserError | None:
    """Return the error to report for one of the client; None for an internal error."""
    from huggingface_hub import errors

    # The client wraps the response to an upload in a RuntimeError, and that to a model card in a ValueError.
    wrapped = error.__cause__
    response = wrapped if isinstance(wrapped, errors.HfHubHTTPError) else error
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{repo!r} is not a repository", expected="OWNER/NAME", cause=error)
    if isinstance(response, errors.RemoteEntryNotFoundError | errors.RevisionNotFoundError):
        return WeightsError("the repository has no such file or revision", where=repo, cause=response)
    if isinstance(response, errors.GatedRepoError):
        message = "access to this gated repository must be requested on its page"
        return DataError(message, where=repo, hint=log_in, cause=response)
    if isinstance(response, errors.RepositoryNotFoundError):
        return DataError("the repository does not exist, or it is private", where=repo, hint=log_in, cause=response)
    if isinstance(response, errors.HfHubHTTPError):
        status = response.response.status_code
        return DataError(
            f"the Hugging Face Hub rejected the request (HTTP {status})",
            where=repo,
            hint=log_in if status in (401, 403) else None,
            cause=error if isinstance(error, ValueError) else response,
        )
    # The client has no class for these.
    if isinstance(error, ValueError) and str(error).startswith("LFS batch API returned errors"):
        return DataError("the Hugging Face Hub rejected the request", where=repo, cause=error)
    if _is_unreachable(error):
        return DataError(
            "the Hugging Face Hub cannot be reached",
            where=repo,
            hint="check the network, HF_ENDPOINT and HF_HUB_OFFLINE",
            cause=wrapped or error,
        )
    return None


def _is_unreachable(error: Exception) -> bool:
    """Whether no connection was made, or a transfer was cut off: the client's own upload, or Xet, its binary one."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError):
        frames = traceback.extract_tb(error.__traceback__)
        return isinstance(error.__cause__, _http_error()) or "xet" in frames[-1].name
    return isinstance(error, (_http_error(), errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))


def _http_error() -> type[Exception]:
    """The base of the client's HTTP errors, of whichever HTTP library it uses."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return base
